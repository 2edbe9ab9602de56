"""What is compiled behind the first requests: used once it is there, and done without where it cannot be had."""

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest
from attrs import define

from models.sharding import make_mesh
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import Key, Menu, StepKey, declare
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from tests.fakes.engines import drain, submit, tokens
from tests.fakes.quick import Quick
from tests.fakes.tiny_llama import tiny
from tests.fakes.waiting import until_sync

BUCKETS = declare(max_slots=2, chunk_tokens=8, decode_steps=2)
BROKEN = StepKey(1, 1, 2)


@pytest.fixture(scope="module")
def program() -> Program:
    model, _ = tiny()
    mesh = make_mesh(jax.devices("cpu")[:1])
    attention = choose(Case(mesh, jnp.float32, KVFormat("float32"), 24, 16, kinds(model)))
    return Program(model, mesh, Shapes(16, (24,), 2, 256), attention)


@pytest.fixture
def runner(program: Program) -> Iterator[Runner]:
    """It serves already, and compiles behind; one of the programs is beyond the compiler."""

    def lower(key: Key) -> Any:
        if key == BROKEN:
            raise RuntimeError(f"INTERNAL: {key} is too much for this compiler")
        return Quick(program.lower(key))

    compiler = Compiler(lower, workers=2)
    compiler.start(BUCKETS.essential())
    compiler.wait(BUCKETS.essential(), lambda done, total: None)
    runner = Runner(program, compiler, tiny()[1], BUCKETS)
    compiler.start_behind(BUCKETS.keys())
    yield runner
    compiler.close()


def engine_of(runner: Runner) -> Engine:
    menu = Menu()
    menu.add(runner.sizes(runner.usable))
    ticks = iter(range(10**9))
    scheduler = Scheduler(Cache([Pages(24)], 16), max_slots=2, menu=menu, pace=Pace())
    return Engine(scheduler, runner, 256, clock=lambda: next(ticks) / 1000)


def compile_all(engine: Engine) -> None:
    def done() -> bool:
        engine.collect()
        return not engine.compiling

    until_sync(done, 60)


def test_an_engine_serves_on_without_programs_that_cannot_be_compiled(
    runner: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, with the reason, and its steps are padded up to another program."""
    engine = engine_of(runner)
    texts = []
    for _ in range(2):
        engine.submit(submit(1, [1, 2, 3]))
        texts.append(tokens(drain(engine)[1]))
        compile_all(engine)

    assert texts[0] == texts[1]
    assert engine.load.dropped == (str(BROKEN),)
    assert engine.load.programs == engine.load.programs_planned == len(BUCKETS.keys()) - 1
    assert engine.scheduler.menu.fit(1, 2) == StepKey(2, 2, 2)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [f"{BROKEN} cannot be compiled; the engine does without it"]
    assert "too much for this compiler" in caplog.text


@define
class Elsewhere:
    """Other ranks, one of which cannot compile `missing`."""

    missing: Key

    def announce(self, key: Key, packed: object) -> None:
        raise AssertionError(f"{key} was run")

    def able(self) -> set[Key]:
        return set(BUCKETS.keys()) - {self.missing}

    def dropped(self) -> set[Key]:
        return {self.missing}


def test_what_other_ranks_cannot_compile_is_done_without(program: Program, caplog: pytest.LogCaptureFixture) -> None:
    """By all of them: a program runs everywhere or nowhere."""
    compiler = Compiler(lambda key: Mock(), workers=1)
    with closing(compiler):
        compiler.start(BUCKETS.keys())
        compiler.wait(BUCKETS.keys(), lambda done, total: None)
        runner = Runner(program, compiler, {}, BUCKETS)
        runner.lead(Elsewhere(StepKey(2, 2, 2)))
        for _ in range(2):
            runner.collect()

    assert runner.usable == set(BUCKETS.keys()) - {StepKey(2, 2, 2)}
    assert (runner.dropped, runner.planned) == ({StepKey(2, 2, 2)}, len(runner.usable))
    told = [record.getMessage() for record in caplog.records]
    assert told == ["step 2x2 cannot be compiled by another rank; the engine does without it"]


def test_a_program_that_is_needed_to_serve_at_all_ends_the_load(program: Program) -> None:
    def lower(key: Key) -> jax.stages.Lowered:
        raise RuntimeError(f"INTERNAL: {key} is too much for this compiler")

    compiler = Compiler(lower, workers=1)
    compiler.start(BUCKETS.essential())
    with pytest.raises(RuntimeError, match="too much for this compiler"):
        compiler.wait(BUCKETS.essential(), lambda done, total: None)
    compiler.close()
