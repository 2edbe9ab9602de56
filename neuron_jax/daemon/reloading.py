"""Other weights for a model that serves: whether its texts stay what they are, and the order of things; must not know HTTP.

First every engine has the new weights ready, then all swap: one that cannot have them keeps all the others from it.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from attrs import frozen

from neuron_jax.daemon.model_text import ModelText
from neuron_jax.errors import EngineDied, LoadError


@frozen
class Served:
    """Which weights serve: where they are from, as somebody said it, the digest of their files (`weights.digest`), and how
    often others were put in their place since the model was loaded."""

    source: str
    digest: str
    reloads: int = 0


class Swapping(Protocol):
    """An engine of the model; `daemon.replica.Replica` is."""

    async def read_weights(self, path: str, *, in_place: bool) -> None: ...

    async def swap_weights(self, path: str, *, keep: bool) -> None: ...

    def drop_weights(self) -> None: ...


async def swap(replicas: Sequence[Swapping], path: Path, *, in_place: bool) -> None:
    """All of `replicas` serve with the weights at `path`, or none. Raises LoadError or EngineDied where none do; an engine
    that dies when others have swapped starts again with the new weights."""
    where = str(path)
    try:
        for replica in replicas:  # one after the other: they read the same disk
            await replica.read_weights(where, in_place=in_place)
        if in_place:
            await _one_by_one(replicas, where)
        else:
            await _at_once(replicas, where)
    finally:
        for replica in replicas:
            replica.drop_weights()


async def _at_once(replicas: Sequence[Swapping], path: str) -> None:
    found = await asyncio.gather(*(one.swap_weights(path, keep=False) for one in replicas), return_exceptions=True)
    for error in found:
        if isinstance(error, BaseException) and not isinstance(error, EngineDied):
            raise error


async def _one_by_one(replicas: Sequence[Swapping], path: str) -> None:
    """In place an engine pauses while it reads, and the others serve."""
    for number, replica in enumerate(replicas):
        try:
            await replica.swap_weights(path, keep=number == 0)
        except EngineDied:
            if number == 0:
                raise


def check_text(ours: ModelText, theirs: ModelText) -> None:
    """Raises LoadError where a token would stand for something else: prompts are already made of the old ones."""
    pairs = zip(ours.tokenizer.pieces, theirs.tokenizer.pieces, strict=False)
    differ = [place for place, (old, new) in enumerate(pairs) if old != new]
    if differ:
        first = differ[0]
        old, new = ours.tokenizer.pieces[first], theirs.tokenizer.pieces[first]
        raise LoadError(
            "bad_checkpoint",
            f"its tokenizer is another one: {len(differ)} tokens stand for something else, the first of them {first}, "
            f"which is {new!r}, not {old!r}",
        )
