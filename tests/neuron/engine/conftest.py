"""Engines over a tiny model, compiled once for the whole folder."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import pytest

from models.sharding import make_mesh
from neuron_jax.engine.buckets import declare
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.programs import Compiler, Program, Shapes
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from tests.fakes.tiny_llama import tiny

SLOTS, CHUNK, PAGE, PAGES = 4, 64, 16, 48


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    model, params = tiny()
    program = Program(model, make_mesh(jax.devices("cpu")[:1]), Shapes(PAGE, PAGES, SLOTS, 512), jnp.float32)
    compiler = Compiler(program.lower, workers=2)
    buckets = declare(max_slots=SLOTS, chunk_tokens=CHUNK)
    compiler.start(buckets.keys())
    compiler.wait(list(buckets.keys()), lambda done, total: None)
    yield Runner(program, compiler, params)
    compiler.close()


@pytest.fixture
def new_engine(runner: Runner) -> Callable[..., Engine]:
    """Engines sharing one runner: pages start out dirty with what the test before left in them."""

    def make(*, pages: int = PAGES, slots: int = SLOTS) -> Engine:
        scheduler = Scheduler(Pages(pages), page_size=PAGE, max_slots=slots, chunk_tokens=CHUNK)
        return Engine(scheduler, runner, 512, clock=lambda: 0.0)

    return make
