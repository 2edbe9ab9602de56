"""Runs steps on the device: owner of parameters and device state. Knows rows, not the queue they came from.

Steps run in the order in which they were dispatched, each on the state that the one before left. So what was freed on the
host while a step is under way may be given away at once: its new owner's step can only run after that one.
"""

import logging
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from attrs import define, field

from neuron_jax.constraints.matcher import mask_words
from neuron_jax.engine import packing
from neuron_jax.engine.batch import Drawn, Step
from neuron_jax.engine.buckets import Buckets, Key, SlotKey, StepKey
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.programs import DeviceState, Program, Result
from neuron_jax.engine.requests import Request

log = logging.getLogger("neuron.engine")


class Others(Protocol):
    """The other processes of a model that is served by several: they run the same programs in the same order."""

    def announce(self, key: Key, packed: packing.Words, masks: packing.Words | None = None) -> None:
        """Tell them to run the program of `key` with `packed`, and with `masks` if it is to have any."""

    def able(self) -> set[Key]:
        """The programs that all of them have compiled."""

    def dropped(self) -> set[Key]:
        """The programs that one of them cannot compile."""


@define(eq=False)
class Runner:
    """The device's side of an engine. One thread calls it, and only with keys that are usable."""

    program: Program
    compiler: Compiler
    params: Any
    buckets: Buckets | None = None  # where one program may serve several sizes of a step
    adapters: Any = field(factory=dict)  # the arrays of those of the program
    usable: set[Key] = field(factory=set, init=False)  # compiled, here and by all others
    dropped: set[Key] = field(factory=set, init=False)  # never will be
    _others: Others | None = field(default=None, init=False)
    _nothing: dict[StepKey, tuple[Any, ...]] = field(factory=dict, init=False)
    _state: DeviceState = field(init=False)
    _mirror: packing.Mirror = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.usable.update(self.compiler.ready)
        self._state = _zeros(self.program.abstract_state())
        shapes = self.program.shapes
        self._mirror = packing.Mirror(shapes.max_slots, shapes.table, len(shapes.pages))

    def lead(self, others: Others) -> None:
        """From now on `others` run every program as well; what they have not compiled is not usable."""
        self._others = others
        self.usable.clear()

    @property
    def planned(self) -> int:
        """How many programs are usable or will be."""
        return len(self.compiler.planned - self.dropped)

    def collect(self) -> list[Key]:
        """The programs that became usable since."""
        self.compiler.collect()
        self.dropped |= self.compiler.dropped
        for key in self._others.dropped() - self.dropped if self._others is not None else ():
            log.warning("%s cannot be compiled by another rank; the engine does without it", key)
            self.dropped.add(key)
        missing = self.compiler.ready.keys() - self.usable - self.dropped
        if not missing:
            return []
        able = missing if self._others is None else missing & self._others.able()
        new = [key for key in self.compiler.ready if key in able]
        self.usable.update(new)
        return new

    def sizes(self, compiled: Collection[Key]) -> Collection[Key]:
        """The steps that can be computed with these programs."""
        return compiled if self.buckets is None else self.buckets.sizes(compiled)

    def pack(self, step: Step) -> packing.Words:
        """What the device must be told to compute `step`."""
        key = self._program(step.key)
        assert isinstance(key, StepKey), f"{key} is no step"
        room, news = packing.NEWS * key.rows, []
        requests = dict.fromkeys(row.request for row in step.rows)
        fed = {row.request for row in step.rows if row.fed}
        # Growth first: there is room for all of it, and only a new request may get a slot.
        for request in sorted(requests, key=self._mirror.is_new):
            new = self._mirror.is_new(request)
            told = self._mirror.note(request)
            if len(told) > room or (new and packing.needs_slot_update(request)):
                # Of a prompt the host knows all tokens: filling its slot again changes nothing else.
                assert new or request in fed, "no room for the pages that a request grew by"
                self._fill_slot(request)
            else:
                news.append(told)
                room -= len(told)
        return self._mirror.pack(step.rows, key, news)

    def dispatch(self, step: Step, packed: packing.Words) -> Result:
        """Start computing `step`; returns before it is done."""
        key = self._program(step.key)
        assert isinstance(key, StepKey), f"{key} is no step"
        masks = packing.masks_of(step.rows, key, mask_words(self.program.model.vocab_size))
        if self._others is not None:
            self._others.announce(key, packed, masks)
        result = self.run(key, packed, masks)
        result.tokens.copy_to_host_async()
        return result

    def run(self, key: StepKey, packed: packing.Words, masks: packing.Words | None = None) -> Result:
        """Start the program `key` of a step; what it draws stays on the device."""
        result: Result
        arguments = self._unmasked(key) if masks is None else (masks,)
        self._state, result = self.compiler.ready[key]((self.params, self.adapters), self._state, packed, *arguments)
        return result

    def _unmasked(self, key: StepKey) -> tuple[Any, ...]:
        """What a step without masks is given in their place, which stays on the device. To put it there compiles nothing."""
        if key not in self._nothing:
            self._nothing[key] = tuple(map(_put_zeros, self.program.abstract_masks(key)))
        return self._nothing[key]

    def fill_slot(self, packed: packing.Words) -> None:
        """Start the program that tells the device of a request."""
        self._state = self.compiler.ready[SlotKey()](self._state, packed)

    def fetch(self, step: Step, result: Result) -> Drawn:
        """Wait for `step`, and take what it brought."""
        tokens = np.asarray(result.tokens)
        logprobs = np.asarray(result.logprobs) if step.wants_logprobs else None
        ends = np.cumsum([packing.lines_of(row) for row in step.rows]).tolist()
        # A row is one line of the result with the tokens of all steps, or of one step a line for each guess.
        rows = [slice(end - packing.lines_of(row), end) for row, end in zip(step.rows, ends, strict=True)]
        return Drawn(
            [tokens[lines].reshape(-1).tolist() for lines in rows],
            None if logprobs is None else [logprobs[lines].reshape(-1, packing.LOGPROBS) for lines in rows],
            self._drafts(step, result, rows),
        )

    def _drafts(self, step: Step, result: Result, rows: Sequence[slice]) -> list[list[int]]:
        """Of each row what its last token that counts was followed by: its other lines have none."""
        if not any(row.drafts for row in step.rows):
            return []
        drafts = np.asarray(result.drafts)
        return [[token for token in drafts[lines].reshape(-1).tolist() if token >= 0] for lines in rows]

    def _program(self, size: Key) -> Key:
        return size if self.buckets is None else self.buckets.program(size)

    def _fill_slot(self, request: Request) -> None:
        packed = self._mirror.fill_slot(request, self.program.model.vocab_size)
        if self._others is not None:
            self._others.announce(SlotKey(), packed)
        self.fill_slot(packed)


def _zeros(abstract: Any) -> Any:
    """Real arrays of zeros for a tree of shapes with shardings. Zeros, because NaN in an unread page would still spread."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), abstract)


def _put_zeros(leaf: Any) -> jax.Array:
    zeros = np.zeros(leaf.shape, leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: zeros[index])
