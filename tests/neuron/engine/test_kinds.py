"""Layers of every kind through the whole engine: text depends neither on company, chunks, the cache nor preemption."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count as counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.registry import build
from models.sharding import make_mesh
from models.spec import RecurrentLayer
from neuron_jax.engine import recurring
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import Menu, declare
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.guesses import Guesser
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.page_groups import page_groups
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from tests.fakes.engines import Client, ask, drain, serve, submit, tokens, words
from tests.fakes.hybrid_files import CONFIGS
from tests.fakes.plain_pass import full_logits, random_params
from tests.fakes.quick import Quick
from tests.fakes.tiny_kinds import Kinds, tiny

SLOTS, CHUNK, PAGE, PAGES, WINDOWED, SNAPSHOTS, CONTEXT, GUESSES = 4, 32, 16, 64, 24, 20, 256, 3
MODELS: dict[str, tuple[str, ...]] = {
    "windows": ("window", "full", "window, sinks, soft cap, narrow values"),
    "windows only": ("window",),
    "hybrid": ("gated delta rule", "full", "short convolution"),
    "hybrid with windows": ("short convolution", "window"),
    "recurrent": ("gated delta rule",),
    "latent": ("latent", "latent"),
    "Qwen 3.5 by a GPU's kernel": (),
}
INTERPRETED = "Qwen 3.5 by a GPU's kernel"
"""A real family's states, gone through by the kernel in Pallas' interpreter."""

NewEngine = Callable[..., Engine]


QUICK = ("hybrid",)
"""The kinds that need most of an engine. Windows and latents are in families that are tried, too."""


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """A runner of one of MODELS with everything compiled."""
    with running(request.param) as runner:
        yield runner


@cache
def made(name: str) -> tuple[Any, Any]:
    """A model and its parameters, the same on every call."""
    if name != INTERPRETED:
        return tiny(*MODELS[name])
    model = build(CONFIGS["qwen35"], quant="none", dtype=jnp.float32)
    params = random_params(model, seed=3)
    # States must fade.
    negative = lambda path, leaf: -abs(leaf) if path[-1].key == "rate" else leaf
    return model, jax.tree_util.tree_map_with_path(negative, params)


@contextmanager
def running(name: str, devices: int = 1) -> Iterator[Runner]:
    model, params = made(name)
    mesh = make_mesh(jax.devices("cpu")[:devices])
    attention = choose(Case(mesh, jnp.float32, KVFormat("float32"), PAGES, PAGE, kinds(model)))
    kernels = {}
    if name == INTERPRETED:
        pytest.importorskip("models.recurrent_rows", reason="this JAX has no Triton", exc_type=ImportError)
        by_kernel = partial(recurring.by_kernel, interpret=True)
        kernels = {layer: by_kernel for layer in model.layers if isinstance(layer, RecurrentLayer)}
    shapes = Shapes(PAGE, pools(model), SLOTS, CONTEXT, snapshots(model), not kernels)
    program = Program(model, mesh, shapes, attention, recurring=kernels)
    compiler = Compiler(lambda key: Quick(program.lower(key)), workers=2)
    keys = declare(max_slots=SLOTS, chunk_tokens=CHUNK, decode_steps=2, guesses=GUESSES).keys()
    compiler.start(keys)
    compiler.wait(keys, lambda done, total: None)
    placed = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), params, program.abstract_params())
    yield Runner(program, compiler, placed)
    compiler.close()


def snapshots(model: Kinds) -> int:
    return SNAPSHOTS if any(isinstance(layer, RecurrentLayer) for layer in model.layers) else 0


def pools(model: Kinds, pages: int = PAGES, windowed: int = WINDOWED) -> tuple[int, ...]:
    return tuple(pages if window is None else min(windowed, pages) for window in page_groups(model.layers))


@pytest.fixture
def new_engine(runner: Runner) -> NewEngine:
    """Engines sharing one runner: pages and states start out dirty with what the test before left in them."""
    return engines_of(runner)


def engines_of(runner: Runner) -> NewEngine:
    def make(
        *,
        pages: int = PAGES,
        windowed: int = WINDOWED,
        chunk: int = CHUNK,
        overlap: bool = True,
        prefix: bool = True,
        guesses: int = 0,
    ) -> Engine:
        model = runner.program.model
        menu = Menu()
        menu.add(key for key in runner.compiler.ready if getattr(key, "tokens", 0) <= chunk)
        cache = Cache(
            [Pages(count) for count in pools(model, pages, windowed)],
            PAGE,
            Naming(PAGE, b"tests") if prefix else None,
            windows=page_groups(model.layers),
            step_tokens=CHUNK,
            snapshots=Pages(count) if (prefix or guesses) and (count := snapshots(model)) else None,
        )
        scheduler = Scheduler(cache, max_slots=SLOTS, menu=menu, pace=Pace(), guesses=guesses)
        ticks = counter()
        return Engine(scheduler, runner, CONTEXT, clock=lambda: next(ticks) / 1000, overlap=overlap)

    return make


def wanted(new_engine: NewEngine, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """What each is answered alone, in the plain loop, without a cache."""
    plain = new_engine(overlap=False, prefix=False)
    return [ask(plain, prompt, **options)[0] for prompt in prompts]


SAMPLED = {"temperature": 0.9, "seed": 5, "max_tokens": 30}


def assert_plain(name: str, new_engine: NewEngine) -> None:
    """Each token that an engine says is the arg max of one pass over all before it."""
    model, params = made(name)
    for length in (1, 15, 40, 150):
        prompt = words(length, seed=length)
        text = ask(new_engine(), prompt, max_tokens=40)[0]

        logits = full_logits(model, params, prompt + text)[length - 1 : -1]
        top = np.sort(logits, axis=-1)
        clear = top[:, -1] - top[:, -2] > 1e-3
        assert clear.mean() > 0.8
        assert (logits.argmax(-1) == text)[clear].all()


def test_greedy_text_is_that_of_a_plain_pass(new_engine: NewEngine, runner: Runner) -> None:
    """Paged and chunked."""
    model = runner.program.model
    assert_plain(next(name for name in MODELS if made(name)[0].layers == model.layers), new_engine)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["windows", "hybrid"])
def test_two_devices_say_what_a_plain_pass_says(name: str) -> None:
    """Heads, and with them pages and states, are spread over both."""
    with running(name, devices=2) as runner:
        pools = runner.program.abstract_state().pool
        assert all(leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in pools[0])
        assert_plain(name, engines_of(runner))


@pytest.mark.parametrize("overlap", [True, False])
def test_in_a_batch_as_alone(new_engine: NewEngine, overlap: bool) -> None:
    prompts = [words(length, seed=length) for length in (1, 16, 17, 33, 70, 110, 31, 150)]
    expected = wanted(new_engine, prompts, **SAMPLED)
    clients = [Client(submit(number, prompt, **SAMPLED), number, None) for number, prompt in enumerate(prompts)]
    outputs = serve(new_engine(overlap=overlap, prefix=False), clients)

    assert [tokens(outputs[number]) for number in range(len(prompts))] == expected


@pytest.mark.parametrize("chunk", [4, 12])
def test_in_chunks_as_at_once(new_engine: NewEngine, chunk: int) -> None:
    prompt = words(125, seed=3)

    assert [ask(new_engine(chunk=chunk, prefix=False), prompt, **SAMPLED)[0]] == wanted(new_engine, [prompt], **SAMPLED)


def test_preempted_as_not(new_engine: NewEngine) -> None:
    """Pages for about two of the texts at a time; where no layer sees everything whoever is admitted has all it needs."""
    prompts = [words(20 + 5 * number, seed=number) for number in range(8)]
    options = SAMPLED | {"max_tokens": 90}
    expected = wanted(new_engine, prompts, **options)
    for prefix in (False, True):
        engine = new_engine(pages=13, windowed=6, prefix=prefix)
        for number, prompt in enumerate(prompts):
            engine.submit(submit(number, prompt, **options))
        outputs = drain(engine)

        assert engine.scheduler.preemptions > 0 or None not in engine.scheduler.cache.windows
        assert [tokens(outputs[number]) for number in range(len(prompts))] == expected


@pytest.mark.parametrize("overlap", [True, False])
def test_cached_as_cold(new_engine: NewEngine, overlap: bool) -> None:
    """Turn after turn, and a text that parts from the first in its middle."""
    # Cold first: the engines share the device's pages, of which each believes that it is the only owner.
    bare = new_engine(overlap=overlap, prefix=False)
    texts, expected = [words(50, seed=1)], []
    for turn in range(4):
        expected.append(ask(bare, texts[turn], **SAMPLED)[0])
        texts.append(texts[turn] + expected[turn] + words(9, seed=turn))
    texts[4] = texts[3][:70] + words(40, seed=9)
    expected.append(ask(bare, texts[4], **SAMPLED)[0])

    engine = new_engine(overlap=overlap)
    found = [ask(engine, text, **SAMPLED) for text in texts]
    again = ask(engine, texts[4], **SAMPLED)

    assert [said for said, _ in found] == expected
    assert again[0] == expected[4]
    cached = [count for _, count in found]
    # All that was computed before, in full pages: the newest token of an answer never was.
    whole = [0, *((len(texts[turn]) + 29) // PAGE * PAGE for turn in range(3))]
    assert cached[:4] == whole
    assert cached[4] == 64
    assert again[1] == 96


def test_what_a_window_has_left_is_given_back(new_engine: NewEngine) -> None:
    """A long text holds all pages of layers that see everything, and a few of those that do not."""
    engine = new_engine(prefix=False)
    windows = [window for window in engine.scheduler.cache.windows if window is not None]
    if not windows:
        pytest.skip("a model without windows")
    engine.submit(submit(1, words(180, seed=1), max_tokens=60))
    most = [0] * len(engine.scheduler.cache.groups)
    while not engine.idle:
        engine.step()
        for group, pool in enumerate(engine.scheduler.cache.groups):
            most[group] = max(most[group], pool.total - pool.free)

    for window, held in zip(engine.scheduler.cache.windows, most, strict=True):
        assert held == (-(-239 // PAGE) if window is None else -(-(window + CHUNK) // PAGE) + 1)


def test_equal_prompts_at_once(new_engine: NewEngine) -> None:
    """Four answers to one prompt, each as it would be alone."""
    prompt = words(100, seed=4)
    engine = new_engine()
    for number in range(4):
        engine.submit(submit(number, prompt, temperature=1.0, seed=number))
    outputs = drain(engine)

    for number in range(4):
        alone = ask(new_engine(prefix=False), prompt, temperature=1.0, seed=number)[0]
        assert tokens(outputs[number]) == alone


@pytest.mark.parametrize("prefix", [True, False])
def test_guesses_of_any_quality_change_nothing(
    runner: Runner, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch, prefix: bool
) -> None:
    """Right ones, and wrong ones at any place: of texts in a batch beside prompts, in more turns than one, and preempted."""
    prompts = [words(20 + 5 * number, seed=number) for number in range(6)]
    options = SAMPLED | {"max_tokens": 60}
    expected = wanted(new_engine, prompts, **options)
    whole = [prompt + text for prompt, text in zip(prompts, expected, strict=True)]
    rng = np.random.default_rng(0)

    def guess(self: Guesser, tokens: list[int], *, ahead: int, most: int) -> list[int]:
        known = next((text for text in whole if text[: len(tokens)] == list(tokens)), list(tokens))
        right = known[len(tokens) + ahead :][: max(most, 0)]
        return [token if rng.random() < 0.7 else (token + 1) % 300 for token in right]

    monkeypatch.setattr(Guesser, "guess", guess)
    monkeypatch.setattr(Guesser, "expected", lambda self, count: 10.0 * count)
    engine = new_engine(pages=16, windowed=8, prefix=prefix, guesses=GUESSES)
    for number, prompt in enumerate(prompts):
        engine.submit(submit(number, prompt, **options))
    outputs = drain(engine)
    turns = [ask(engine, text[:-3], **SAMPLED)[0][:3] for text in whole]

    assert [tokens(outputs[number]) for number in range(len(prompts))] == expected
    assert turns == [text[-3:] for text in whole]
    assert 0 < engine.scheduler.right_guesses < engine.scheduler.guessed_tokens
