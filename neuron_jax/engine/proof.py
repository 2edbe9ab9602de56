"""Whether the promise of `deterministic` holds on this device: tried with the engine's own program before it serves.

Knows rows and bits, no queue. A step of one fixed size keeps the promise where a row of XLA's products depends neither on
the other rows nor on its place among them. On CPUs that was so wherever it was measured; nothing guarantees it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import frozen

from neuron_jax.engine.batch import Row, Step
from neuron_jax.engine.buckets import StepKey
from neuron_jax.engine.requests import Request
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.sampler import MAX_ALTERNATIVES
from neuron_jax.workers.frames import Sampling

LENGTH = 4
"""Tokens of the text that is computed in every place."""

FAR = 200
"""Where the texts of the others go on: behind the first block of attention, so that the one looked at waits for them."""

SEED = 20


class NotDeterministicError(Exception):
    """The device computes a row differently beside other rows; the message says what would help."""


def prove(runner: Runner, rows: int) -> None:
    """Compute one text in every row: beside itself, beside others and alone, token by token and all at once; and compare the
    log-probabilities of what may follow, bit by bit. Raises NotDeterministicError. What it leaves in slots and pages is
    what any request leaves.
    """
    trial = Steps(runner, rows)
    rng = np.random.default_rng(SEED)
    text, other = rng.integers(0, runner.program.model.vocab_size, (2, LENGTH)).tolist()
    places = trial.places
    seen = trial.token_by_token(dict.fromkeys(places, text), {})
    for turn in (0, 1):
        ours, theirs = (dict.fromkeys(places[first::2], words) for first, words in ((turn, text), (1 - turn, other)))
        seen += trial.token_by_token(ours, theirs)
    seen += trial.token_by_token({0: text}, {})
    seen.append(trial.at_once(text))
    if any(not np.array_equal(found, seen[0]) for found in seen):
        raise NotDeterministicError(
            f"this device computes a token differently beside others in steps of {rows} rows, so deterministic = true "
            "cannot be kept; with engine.max_slots = 1 there are no others"
        )


@frozen
class Steps:
    """Steps of `rows` rows outside of any schedule."""

    runner: Runner
    rows: int

    @property
    def places(self) -> range:
        """The slots that there are pages for."""
        return range(min(self.rows, min(self.runner.program.shapes.pages, default=FAR) // self._pages))

    def token_by_token(self, ours: dict[int, list[int]], theirs: dict[int, list[int]]) -> list[Any]:
        """Texts by place -> of each of ours the words on what may follow it. The others stand far ahead in theirs."""
        texts = [(place, text, 0) for place, text in ours.items()] + [(at, text, FAR) for at, text in theirs.items()]
        requests = [(self._request(place, text), ahead) for place, text, ahead in sorted(texts)]
        mine = [i for i, (_, ahead) in enumerate(requests) if not ahead]
        lines: list[Any] = []
        for position in range(LENGTH):
            lines = self._computed(
                [Row(request, 0, ahead + position, 1, 1, fed=not ahead) for request, ahead in requests]
            )
        return [lines[i] for i in mine]

    def at_once(self, text: list[int]) -> Any:
        """The text as a prompt, as many tokens in a step as fit -> the words on what may follow it."""
        request, lines = self._request(0, text), []
        for start in range(0, LENGTH, self.rows):
            lines = self._computed([Row(request, 0, start, min(self.rows, LENGTH - start), 1, fed=True)])
        return lines[0]

    def _computed(self, rows: Sequence[Row]) -> list[Any]:
        step = Step(StepKey(self.rows, self.rows), rows)
        drawn = self.runner.fetch(step, self.runner.dispatch(step, self.runner.pack(step)))
        assert drawn.logprobs is not None
        return [line[0] for line in drawn.logprobs]

    @property
    def _pages(self) -> int:
        return -(-LENGTH // self.runner.program.shapes.page_size)

    def _request(self, place: int, text: list[int]) -> Request:
        first = 1 + place * self._pages
        return Request(
            id=place,
            prompt_length=LENGTH,
            tokens=list(text),
            sampling=Sampling(temperature=0.0, logprobs=MAX_ALTERNATIVES),
            limit=LENGTH + 1,
            min_tokens=0,
            stop_ids=frozenset(),
            arrival=place,
            wants_logprobs=True,
            pages=[list(range(first, first + self._pages)) for _ in self.runner.program.groups],
            slot=place,
        )
