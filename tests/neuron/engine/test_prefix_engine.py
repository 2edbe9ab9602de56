"""The real engine with its prefix cache cold and warm: the same tokens, for less work."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from neuron_jax.engine.engine import Engine
from tests.fakes.engines import ask, drain, submit, tokens, words

NewEngine = Callable[..., Engine]
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 7},
    {"temperature": 1.0, "seed": 9, "top_k": 5, "min_p": 0.01},
    {"temperature": 0.7, "seed": 10, "presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("overlap", [True, False])
def test_a_warm_cache_changes_no_token(new_engine: NewEngine, sampling: dict[str, Any], overlap: bool) -> None:
    """Off, cold, warm, and warm with another ending."""
    prompt = words(120, seed=1)
    other = prompt[:77] + words(30, seed=2)
    engine = new_engine(overlap=overlap)
    bare = new_engine(overlap=overlap, prefix=False)
    expected, different = ask(bare, prompt, **sampling)[0], ask(bare, other, **sampling)[0]

    assert ask(engine, prompt, **sampling) == (expected, 0)
    assert ask(engine, prompt, **sampling) == (expected, 112)
    assert ask(engine, other, **sampling) == (different, 64)
    assert ask(bare, prompt, **sampling) == (expected, 0)


def test_a_conversation_finds_all_its_turns(new_engine: NewEngine) -> None:
    """Pages that were filled token by token, by decoding, serve as well as a prompt's."""
    engine, bare = new_engine(), new_engine(prefix=False)
    text, seen = words(20, seed=3), 1
    for turn in range(5):
        sampling = {"max_tokens": 40, "temperature": 0.8, "seed": turn}
        said, cached = ask(engine, text, **sampling)

        assert said == ask(bare, text, **sampling)[0]
        assert cached == (seen - 1) // 16 * 16
        seen = len(text) + len(said)
        text = text + said + words(9, seed=turn)


def test_equal_prompts_at_once_are_computed_once(new_engine: NewEngine) -> None:
    """n answers to one prompt: each as it would be alone."""
    prompt = words(100, seed=4)
    engine = new_engine()
    for i in range(4):
        engine.submit(submit(i, prompt, temperature=1.0, seed=i))
    outputs = drain(engine)

    for i in range(4):
        assert tokens(outputs[i]) == ask(new_engine(prefix=False), prompt, temperature=1.0, seed=i)[0]
    assert [outputs[i][0].cached_tokens for i in range(4)] == [0, 96, 96, 96]
    assert (engine.load.prefix_lookup_tokens, engine.load.prefix_hit_tokens) == (400, 288)


def test_a_small_pool_forgets_and_stays_right(new_engine: NewEngine) -> None:
    """More texts than the pool has room for, with preemptions between."""
    engine, rng = new_engine(pages=14), random.Random(5)
    prompts = [words(48, seed=i % 3)[: rng.randrange(20, 48)] + words(5, seed=i) for i in range(12)]
    for i, prompt in enumerate(prompts):
        engine.submit(submit(i, prompt, max_tokens=50))
    outputs = drain(engine)

    assert engine.scheduler.preemptions > 0
    assert engine.load.prefix_hit_tokens > 0
    for i, prompt in enumerate(prompts):
        assert tokens(outputs[i]) == ask(new_engine(prefix=False), prompt, max_tokens=50)[0]


def test_log_probabilities_are_those_of_a_cold_cache(new_engine: NewEngine) -> None:
    engine = new_engine()
    prompt = words(90, seed=6)
    said = []
    for i in range(2):
        engine.submit(submit(i, prompt, logprobs=2, max_tokens=5))
        outputs = drain(engine)[i]
        said.append([value for output in outputs for value in output.logprobs or ()])

    assert outputs[0].cached_tokens == 80
    assert said[0] == pytest.approx(said[1], abs=1e-4)
