"""What is compiled for cards that are not here: shapes that people serve, on each generation, and how it is measured."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from neuron_jax.deviceless.census import Census, launches
from neuron_jax.deviceless.predict import whole
from neuron_jax.deviceless.programs import Compiled, Depth, abroad, compile_key, shallow
from neuron_jax.deviceless.reads import token_bytes
from neuron_jax.deviceless.stored import promised
from neuron_jax.engine.buckets import Draws, Key, SlotKey, StepKey
from neuron_jax.engine.build import Design, design
from neuron_jax.engine.memory import STEP, held
from neuron_jax.engine.programs import Program
from neuron_jax.hardware.cards import card
from neuron_jax.workers.frames import EngineSpec
from tests.deviceless.ptx import Resources, ours
from tests.fakes.public_shapes import SHAPES

MIB = 2**20
ONE, MANY, PROMPT, SEVERAL, CUT, FULL, SLOT = "1", "64", "1024/128", "64/64/4", "64/cut", "64/full", "slot"
"""Programs: tokens[/rows[/steps]][/what rows draw by], which is mostly temperature alone."""


@frozen
class Case:
    """A model on so many of a card, and the programs that are looked at."""

    model: str
    card: str
    quant: str = "none"
    devices: int = 1
    keys: tuple[str, ...] = (ONE,)

    def __str__(self) -> str:
        return f"{self.model} {self.card} x{self.devices} {self.quant}"


CASES = (
    Case("llama-8b", "h100", keys=(ONE, MANY, PROMPT, SEVERAL, CUT, FULL, SLOT)),
    Case("llama-8b", "h100", "int8", keys=(ONE, MANY)),
    Case("llama-8b", "h100", "int4", keys=(ONE, MANY)),
    Case("llama-8b", "h100", "fp8", keys=(ONE, MANY)),
    Case("llama-8b", "h100", devices=2, keys=(ONE, MANY)),
    Case("llama-8b", "h100", devices=8, keys=(ONE, MANY, FULL, PROMPT)),
    Case("llama-8b", "h100", "int4", devices=8),
    Case("llama-8b", "a100", keys=(ONE, PROMPT)),
    Case("llama-8b", "3060", "int4"),
    Case("llama-8b", "4090", "int8", keys=(ONE, PROMPT)),
    Case("llama-8b", "l40s", "fp8", keys=(MANY,)),
    Case("llama-8b", "5090", keys=(ONE, PROMPT)),
    Case("moe", "h100", keys=(ONE, MANY, PROMPT)),
    Case("moe", "h100", "int8", devices=2),
    Case("moe", "h100", "fp8", keys=(MANY,)),
    Case("moe", "4090", "int4"),
    Case("oss", "4090", "stored", keys=(ONE, MANY, PROMPT)),
    Case("oss", "h100", "stored", devices=2),
    Case("hybrid", "h100", keys=(ONE, PROMPT)),
    Case("hybrid", "h100", devices=2),
    Case("demo", "4090", keys=(ONE, PROMPT)),
)


@frozen
class Figures:
    """Of one program; of those of the whole model. All are better the smaller."""

    layer: float  # kernels in a layer behind the first, on average
    around: int  # kernels before and behind the layers, and what the first layer has more
    conditionals: int
    loops: int  # whose count only the device knows
    sorts: int  # of the vocabulary
    wide: int  # kernels that go over the vocabulary
    widened: int  # narrow weights that are written out wider
    copied: int  # pools, states and weights that are copied whole
    temporary: float  # MiB
    unplanned: float  # MiB that a step takes beyond what the memory plan has for it
    moved: float  # bytes besides keys and values read, over those of the weights that its tokens need

    def named(self) -> Mapping[str, float]:
        return asdict(self)


WANTED = Figures(8, 12, 0, 0, 0, 3, 0, 0, 16, 0, 1.05)
"""Of a step of one token; `temporary` where weights are narrow."""


@frozen
class Made:
    """A design of the whole model, and the programs of its first layers."""

    whole: Design
    depth: Depth
    program: Program


@frozen
class Measured:
    """One program, and what it is held to."""

    made: Made
    compiled: Compiled
    census: Census
    state: int  # bytes that are donated
    kernels: tuple[Resources, ...]  # of ours

    def figures(self) -> Figures:
        parts, like = self.census.parts(), self.made.depth.like
        planned = next(row.bytes for row in self.made.whole.plan.rows if row.what == STEP)
        every = launches(whole(self.census, like)) if parts.layers else self.census.launches
        layer = sum(launches(parts.layers[number]) for number in like[1:]) / len(like[1:]) if parts.layers else 0
        kernels = whole(self.census, like) if parts.layers else self.census.kernels
        tokens = getattr(self.compiled.key, "tokens", 1)
        return Figures(
            layer=round(layer, 1),
            around=round(every - layer * len(like)),
            conditionals=self.census.conditionals,
            loops=self.census.loops,
            sorts=self.census.sorts,
            wide=self.census.wide,
            widened=len(set(self.census.widened)),
            copied=len(self.census.copies),
            temporary=round(self.compiled.memory.temp / MIB, 1),
            unplanned=round(max(0, self.compiled.memory.step - planned) / MIB, 1),
            moved=round(sum(one.moved * one.times for one in kernels) / token_bytes(self.made.whole, tokens), 2),
        )


def key_of(text: str, most: int) -> Key:
    """Of the programs' names above; with as many rows as tokens where none are named, and at most `most`."""
    if text == SLOT:
        return SlotKey()
    *sizes, last = text.split("/")
    kind = Draws.PLAIN if last.isdigit() else Draws[last.upper()]
    tokens, *rest = map(int, [*sizes, last] if last.isdigit() else sizes)
    rows, steps = (*rest, *(min(tokens, most), 1)[len(rest) :])
    return StepKey(tokens, rows, steps, kind)


@cache
def make(case: Case) -> Made:
    """As an engine would be on an empty card, with the settings that it has by itself."""
    one, config = card(case.card), SHAPES[case.model]
    devices = tuple(range(case.devices))
    spec = EngineSpec(case.model, "", platform="cuda", quant=case.quant, devices=devices, tensor_parallel=case.devices)
    depth, stored = shallow(config), promised(config)
    made, few = (design(cut, spec, limit=int(0.97 * one.memory), storage=stored) for cut in (config, depth.config))
    return Made(made, depth, abroad(made.of(few.model), one))


def measure(case: Case, text: str, folder: Path) -> Measured:
    """Takes some seconds. XLA's text of each kernel goes into `folder`."""
    made = make(case)
    compiled = compile_key(made.program, key_of(text, made.whole.buckets.rows), {"xla_dump_to": str(folder)})
    vocabulary = made.whole.model.vocab_size
    state = held(made.program.abstract_state())
    return Measured(made, compiled, compiled.census(vocabulary), state, tuple(ours(folder)))


Bounds = dict[str, dict[str, Any]]
"""By case, program and figure."""
