"""The promise of the native kernels: a request gives the same tokens, however it is served and whoever is beside it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.native import library
from models.registry import build
from models.sharding import make_mesh
from neuron_jax.engine import native_sampler
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import Menu, declare
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.place import load_params
from neuron_jax.workers.frames import Sampling, Submit
from tests.fakes.quick import served
from tests.fakes.tiny_llama import write_checkpoint

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")

SLOTS, CONTEXT, PAGES = 33, 512, 96
EXACT = {16: True, 32: False}
"""By page size, whether one program computes steps of all sizes, or there are some that pad."""

Answer = tuple[list[int], list[float]]


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Runner]]:
    """By page size: the same weights, rounded to 4 bits, behind pages of 16 and of 32 tokens."""
    mesh = make_mesh(jax.devices("cpu")[:1])
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"), hidden_size=64, intermediate_size=96)
    with open_checkpoint(folder) as checkpoint:
        model = build(checkpoint.config, dtype=jnp.float32, native=True, quant="int4")
        params = load_params(model, checkpoint, mesh, lambda *_: None)
    with ExitStack() as stack:
        made = {}
        for page in (16, 32):
            case = Case(mesh, jnp.float32, KVFormat("float32"), PAGES, page, kinds(model))
            shapes = Shapes(page, (PAGES,), SLOTS, CONTEXT)
            program = Program(model, mesh, shapes, choose(case), native_sampler.sample)
            assert program.attention.name == "native"
            compiler = Compiler(served(program.lower), workers=2)
            stack.callback(compiler.close)
            buckets = declare(max_slots=SLOTS, chunk_tokens=64, decode_steps=4, guesses=5, exact=EXACT[page])
            declared = buckets.keys()
            keys = [key for key in declared if EXACT[page] or getattr(key, "rows", 1) in {1, buckets.rows}]
            compiler.start(keys)
            compiler.wait(keys, lambda done, total: None)
            made[page] = Runner(program, compiler, params, buckets)
        yield made


def engine(
    runner: Runner, *, pages: int = PAGES, overlap: bool = True, prefix: bool = True, guess: bool = False
) -> Engine:
    menu = Menu()
    menu.add(runner.sizes(runner.compiler.ready))
    size = runner.program.shapes.page_size
    naming = Naming(size, b"tests") if prefix else None
    scheduler = Scheduler(
        Cache([Pages(pages)], size, naming), max_slots=SLOTS, menu=menu, pace=Pace(), guesses=5 * guess
    )
    return Engine(scheduler, runner, CONTEXT, clock=Ticks(), overlap=overlap)


class Ticks:
    """A clock by which every look takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        self.now += 1
        return self.now / 1000


def request(seed: int, *, temperature: float, logprobs: int | None = 2) -> Submit:
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, 300, 20 + 13 * (seed % 9)).tolist()
    return Submit(seed, prompt, Sampling(temperature=temperature, top_p=0.95, seed=seed, logprobs=logprobs), 24)


def answers(served: Engine, requests: list[Submit]) -> dict[int, Answer]:
    """What each request gets when all of them are handed in at once."""
    for one in requests:
        served.submit(one)
    found: dict[int, Answer] = {one.request: ([], []) for one in requests}
    while not served.idle:
        for output in served.step():
            assert output.error is None
            found[output.request][0].extend(output.tokens)
            found[output.request][1].extend(output.logprobs or [])
    served.check_integrity()
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_whoever_is_beside_it_and_however_it_is_served(runners: dict[int, Runner], temperature: float) -> None:
    """Alone; among 32 others; on larger pages; with the cache warm; preempted; without overlap."""
    requests = [request(seed, temperature=temperature) for seed in range(1, SLOTS + 1)]
    alone: dict[int, Answer] = {}
    for one in requests:
        alone |= answers(engine(runners[16], prefix=False, overlap=False), [one])
    assert len({tuple(tokens) for tokens, _ in alone.values()}) > SLOTS // 2, "texts that are all alike prove nothing"
    warm = engine(runners[16])
    ways: dict[str, Callable[[], dict[int, Answer]]] = {
        "all at once": lambda: answers(engine(runners[16], prefix=False), requests),
        "in the other order": lambda: answers(engine(runners[16], prefix=False), requests[::-1]),
        "on pages of 32": lambda: answers(engine(runners[32]), requests),
        "with the cache cold": lambda: answers(warm, requests[:8]),
        "with the cache warm": lambda: answers(warm, requests[:8]),
        "in a pool too small for all": lambda: answers(engine(runners[16], pages=34), requests),
    }
    for way, serve in ways.items():
        found = serve()
        for number, (tokens, logprobs) in found.items():
            assert tokens == alone[number][0], f"{way}: request {number}"
            assert logprobs == alone[number][1], f"{way}: the log-probabilities of request {number}, to the bit"


def test_guessing_changes_nothing(runners: dict[int, Runner]) -> None:
    requests = [request(seed, temperature=0.0, logprobs=None) for seed in range(1, 9)]
    plain = answers(engine(runners[16], prefix=False), requests)
    guessing = engine(runners[16], prefix=False, guess=True)
    assert answers(guessing, requests) == plain
    assert guessing.scheduler.guessed_tokens > 0, "nothing was guessed"
