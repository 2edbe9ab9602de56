"""Other weights under running streams: what each says afterwards, what is forgotten, and that nothing is compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from neuron_jax.engine.engine import Engine
from neuron_jax.engine.runner import Runner
from tests.fakes.engines import ask, drain, submit, tokens, words
from tests.fakes.plain_pass import random_params

NewEngine = Callable[..., Engine]
LENGTH = 40
STREAMS: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.8, "seed": 6, "top_k": 9}]
PROMPTS = [words(50, seed=1), words(50, seed=1), words(7, seed=2)]


@pytest.fixture
def others(runner: Runner) -> Iterator[Any]:
    """Parameters of the same shapes; the runner has its own back afterwards."""
    own = runner.params
    yield random_params(runner.program.model, seed=12)
    runner.params = own


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("steps", [3, 9])
def test_streams_go_on_with_the_new_weights(
    new_engine: NewEngine, runner: Runner, others: Any, steps: int, overlap: bool
) -> None:
    """Every token behind the swap is the one that the new weights say to the text so far, while some still wait for a slot."""
    engine, compiled = new_engine(overlap=overlap, slots=2), runner.compiler.unplanned
    said: dict[int, list[int]] = {number: [] for number in range(3)}
    for number, (prompt, sampling) in enumerate(zip(PROMPTS, STREAMS, strict=True)):
        engine.submit(submit(number, prompt, max_tokens=LENGTH, **sampling))
    for outputs in (*(engine.step() for _ in range(steps)), engine.land()):
        for output in outputs:
            said[output.request] += output.tokens
    before = {number: len(words_said) for number, words_said in said.items()}
    engine.swap(others)
    engine.check_integrity()
    rest = {number: tokens(outputs) for number, outputs in drain(engine).items()}

    assert before[0] > 0
    assert before[2] == 0
    for number, (prompt, sampling) in enumerate(zip(PROMPTS, STREAMS, strict=True)):
        left = LENGTH - before[number]
        expected, _ = ask(new_engine(prefix=False), prompt + said[number], max_tokens=left, **sampling)
        assert rest[number] == expected
    assert runner.compiler.unplanned == compiled


def test_nothing_of_the_old_weights_is_found_again(new_engine: NewEngine, others: Any) -> None:
    engine, prompt = new_engine(), words(90, seed=3)
    old, _ = ask(engine, prompt)
    assert ask(engine, prompt) == (old, 80)
    engine.swap(others)
    new, cached = ask(engine, prompt)

    assert cached == 0
    assert new != old
    assert new == ask(new_engine(prefix=False), prompt)[0]
    assert ask(engine, prompt) == (new, 80)
