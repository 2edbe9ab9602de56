"""An engine's own step programs, compiled for cards that are not here; knows designs and keys, opens no files.

Nothing can be tried, so attention is the first rung that says it can, and where XLA would time several ways to multiply on
the card it takes its defaults.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from attrs import evolve, frozen

from models import target
from models.errors import ModelError
from models.registry import read
from neuron_jax.deviceless.census import Census, census
from neuron_jax.deviceless.hlo import parse
from neuron_jax.deviceless.topology import devices
from neuron_jax.engine.attention.choose import RUNGS
from neuron_jax.engine.buckets import Key
from neuron_jax.engine.build import Design, program_for
from neuron_jax.engine.memory import ProgramMemory, analyse
from neuron_jax.engine.programs import Program
from neuron_jax.hardware.cards import Card

LEAST_LAYERS = 2


@frozen
class Compiled:
    """One program: what it takes on each device, its seconds of tracing and of compiling, and its text."""

    key: Key
    memory: ProgramMemory
    lower_seconds: float
    compile_seconds: float
    text: str

    def census(self, vocabulary: int) -> Census:
        return census(parse(self.text), vocabulary)


def abroad(made: Design, card: Card) -> Program:
    """The programs of a design for as many of a card as it has devices."""
    return program_for(made, devices(card, made.tensor_parallel), [evolve(rung, tried=False) for rung in RUNGS])


def lower(program: Program, key: Key) -> jax.stages.Lowered:
    """As `Program.lower`, for devices that are not here: what asks for the device while it is traced is told them."""
    mesh = program.mesh
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), target.tracing_for(mesh.devices.flat[0]):
        return program.lower(key)


def compile_key(program: Program, key: Key, options: Mapping[str, str] | None = None) -> Compiled:
    """With XLA's `options`. Raises whatever XLA refuses a program with."""
    began = time.monotonic()
    lowered = lower(program, key)
    then = time.monotonic()
    made = lowered.compile(dict(options) if options else None)
    memory = analyse(made)
    assert memory is not None, "XLA:GPU tells what a program takes"
    return Compiled(key, memory, then - began, time.monotonic() - then, made.as_text() or "")


@frozen
class Depth:
    """A model with its first layers only. `like`: for every layer of the whole one the number of one here that is its like."""

    config: Mapping[str, Any]
    like: Sequence[int]

    @property
    def layers(self) -> int:
        return 1 + max(self.like)


def shallow(config: Mapping[str, Any]) -> Depth:
    """The fewest first layers of a model in which there is each kind of layer that it has, behind its first one.

    A program's text and time to compile go with its layers, and what one of a kind does another does.
    """
    stack = _stack(config)
    count = len(stack)
    if count <= LEAST_LAYERS:
        return Depth(config, range(count))
    found: dict[Any, int] = {}
    for number in range(1, count):
        found.setdefault(stack[number], number)
    most = max(LEAST_LAYERS, 1 + max(found.values()))
    cut = _cut(config, count, most)
    if _stack_or_none(cut) != stack[:most]:  # a family that says its depth in another way
        return Depth(config, range(count))
    return Depth(cut, (0, *(found[kind] for kind in stack[1:])))


def _cut(config: Mapping[str, Any], count: int, most: int) -> Mapping[str, Any]:
    """With fewer layers, in whatever list has an entry for each."""
    lists = {key: value[:most] for key, value in config.items() if isinstance(value, list) and len(value) == count}
    return {**config, **lists, "num_hidden_layers": most}


def _stack(config: Mapping[str, Any]) -> Sequence[Any]:
    """A record for each layer; equal ones are of a kind."""
    return tuple(getattr(read(config), "stack", ()))


def _stack_or_none(config: Mapping[str, Any]) -> Sequence[Any] | None:
    try:
        return _stack(config)
    except ModelError:
        return None
