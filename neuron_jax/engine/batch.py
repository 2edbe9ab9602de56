"""What one engine step does, as data: the words between scheduler and runner. Knows neither policy nor device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import define

from neuron_jax.engine.buckets import StepKey, VerifyKey
from neuron_jax.engine.requests import Request


@define(eq=False)
class Row:
    """One request's part of a step, from position `start` on.

    Of a prompt, `count` tokens are computed, and `draws` is 1 when the last of them is the newest. Of a decode step,
    `count` = `draws` tokens follow one another. With `guesses` for what comes after the next token, as many of those are
    drawn as were guessed right, and one: at most `draws`. `stay` tells whether the request is still the one planned for.
    """

    request: Request
    stay: int
    start: int
    count: int
    draws: int
    guesses: Sequence[int] = ()


@define(eq=False)
class Step:
    """Rows computed together by the program `key`: one row with a chunk of its prompt, many rows that decode, or both."""

    key: StepKey
    rows: Sequence[Row]

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def open_ended(self) -> bool:
        """Whether only its result tells how far it got: nothing can be planned before that."""
        return isinstance(self.key, VerifyKey)

    @property
    def wants_logprobs(self) -> bool:
        return any(row.request.wants_logprobs for row in self.rows)


@define(eq=False)
class Drawn:
    """What came back of a step: tokens [rows][steps], -1 behind a row's last; and log-probabilities as `packing` has them,
    where a row wants them."""

    tokens: list[list[int]]
    logprobs: npt.NDArray[np.int32] | None
