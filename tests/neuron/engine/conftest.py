"""Engines over a tiny model, compiled once for the whole folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import jax
import jax.numpy as jnp
import pytest

from models.sharding import make_mesh
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import Menu, StepKey, declare
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from tests.fakes.quick import Quick
from tests.fakes.tiny_llama import tiny

SLOTS, CHUNK, PAGE, PAGES, STEPS, GUESSES = 4, 64, 16, 48, 4, 5


@contextmanager
def running(kv: str, *, chunk: int = CHUNK, guesses: int = GUESSES) -> Iterator[Runner]:
    """A runner of the tiny model with everything compiled, whose keys and values are kept as `kv`."""
    model, params = tiny()
    mesh = make_mesh(jax.devices("cpu")[:1])
    attention = choose(Case(mesh, jnp.float32, KVFormat(kv), PAGES, PAGE, kinds(model)))
    program = Program(model, mesh, Shapes(PAGE, (PAGES,), SLOTS, 512), attention)
    compiler = Compiler(lambda key: Quick(program.lower(key)), workers=2)
    keys = declare(max_slots=SLOTS, chunk_tokens=chunk, decode_steps=STEPS, guesses=guesses).keys()
    compiler.start(keys)
    compiler.wait(keys, lambda done, total: None)
    compiler.watch()
    yield Runner(program, compiler, params)
    compiler.close()


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    with running("float32") as runner:
        yield runner


@pytest.fixture(
    scope="module", params=[pytest.param("int8", marks=pytest.mark.slow), pytest.param("fp8", marks=pytest.mark.slow)]
)
def narrow_runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """Keys and values in fewer bits than the model computes in."""
    # Each program takes XLA seconds: chunks and guesses are of no more kinds than it takes to see that they do not matter.
    guesses = GUESSES if request.param == "int8" else 0
    with running(request.param, chunk=CHUNK // 4, guesses=guesses) as runner:
        yield runner


@pytest.fixture
def new_engine(runner: Runner) -> Callable[..., Engine]:
    """Engines sharing one runner: pages start out dirty with what the test before left in them."""
    return engines_of(runner)


@pytest.fixture
def new_narrow_engine(narrow_runner: Runner) -> Callable[..., Engine]:
    """The same, with a narrow cache."""
    return engines_of(narrow_runner)


def engines_of(runner: Runner) -> Callable[..., Engine]:
    """Their clock gives every step of the device a millisecond or two, so that all of the policy is at work."""

    def make(
        *,
        pages: int = PAGES,
        slots: int = SLOTS,
        steps: int = STEPS,
        overlap: bool = True,
        prefix: bool = True,
        guessing: bool = False,
    ) -> Engine:
        menu = Menu()
        menu.add(key for key in runner.compiler.ready if not isinstance(key, StepKey) or key.steps <= steps)
        scheduler = Scheduler(
            Cache([Pages(pages)], PAGE, Naming(PAGE, b"tests") if prefix else None),
            max_slots=slots,
            menu=menu,
            pace=Pace(),
            guesses=GUESSES if guessing else 0,
        )
        ticks = count()
        return Engine(scheduler, runner, 512, clock=lambda: next(ticks) / 1000, overlap=overlap)

    return make
