"""The engine against a plain causal pass of the same model: text does not depend on company, chunks, pages or accidents."""

import random
from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from neuron_jax.engine.engine import Engine
from neuron_jax.engine.runner import Runner
from tests.fakes.engines import drain, submit, tokens
from tests.fakes.tiny_llama import full_logits

NewEngine = Callable[..., Engine]


def prompts(count: int, *, longest: int = 150) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(300) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def alone(new_engine: NewEngine, prompt: list[int], **sampling: object) -> list[int]:
    engine = new_engine()
    engine.submit(submit(1, prompt, **sampling))
    return tokens(drain(engine)[1])


def test_greedy_text_is_that_of_a_plain_forward_pass(new_engine: NewEngine, runner: Runner) -> None:
    """Paged, chunked and cached, each token is the arg max of one causal pass over all before it."""
    for prompt in prompts(4):
        text = alone(new_engine, prompt)

        logits = full_logits(runner.program.model, runner.params, prompt + text)[len(prompt) - 1 : -1]
        top = np.sort(logits, axis=-1)
        clear = top[:, -1] - top[:, -2] > 1e-3
        assert (logits.argmax(-1) == text)[clear].all()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 7},
        {"temperature": 1.2, "seed": 8, "top_p": 0.8},
        {"temperature": 1.0, "seed": 9, "top_k": 5, "min_p": 0.01},
        {"temperature": 0.7, "seed": 10, "presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    ],
)
def test_a_request_gives_the_same_tokens_alone_and_beside_others(new_engine: NewEngine, sampling: dict) -> None:
    first, *others = prompts(7)
    expected = alone(new_engine, first, **sampling)

    engine = new_engine()
    for i, other in enumerate(others):
        engine.submit(submit(100 + i, other, temperature=0.8, seed=i))
        engine.step()
    engine.submit(submit(1, first, **sampling))

    assert tokens(drain(engine)[1]) == expected


def test_preempted_requests_lose_nothing(new_engine: NewEngine) -> None:
    """A pool too small for everybody: the youngest starts again, and the text is the same."""
    wanted = dict(enumerate(prompts(4, longest=90)))
    sampling = {"max_tokens": 60, "temperature": 0.9, "seed": 5, "frequency_penalty": 0.3}
    expected = {i: alone(new_engine, prompt, **sampling) for i, prompt in wanted.items()}

    engine = new_engine(pages=12)
    for i, prompt in wanted.items():
        engine.submit(submit(i, prompt, **sampling))
    outputs = drain(engine)

    assert engine.scheduler.preemptions > 0
    assert {i: tokens(out) for i, out in outputs.items()} == expected


def test_cancelling_at_any_moment_frees_everything(new_engine: NewEngine) -> None:
    rng = random.Random(17)
    engine = new_engine(pages=20)
    living: set[int] = set()
    for i, prompt in enumerate(prompts(200, longest=80)):
        engine.submit(submit(i, prompt))
        living.add(i)
        for _ in range(rng.randrange(3)):
            living -= {output.request for output in engine.step() if output.finish}
        victim = rng.choice(sorted(living)) if living and rng.random() < 0.9 else -1
        engine.cancel(victim)
        living.discard(victim)
        engine.check_integrity()

    finished = drain(engine)

    assert set(finished) <= living
    assert engine.scheduler.pages.free == engine.scheduler.pages.total


def test_a_cancelled_request_says_nothing_more(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.submit(submit(1, [1, 2, 3]))
    engine.submit(submit(2, [4, 5, 6]))
    engine.step()
    engine.cancel(1)

    assert set(drain(engine)) == {2}


def test_stop_ids_end_a_request_with_the_id_as_its_last_token(new_engine: NewEngine) -> None:
    text = alone(new_engine, [5, 6, 7])
    engine = new_engine()
    engine.submit(submit(1, [5, 6, 7], stop=(text[3],)))

    outputs = drain(engine)[1]

    assert tokens(outputs) == text[: text.index(text[3]) + 1]
    assert outputs[-1].finish == "stop"


def test_the_length_limit_ends_a_request(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.submit(submit(1, [5, 6, 7], max_tokens=4))
    outputs = drain(engine)[1]

    assert [output.finish for output in outputs] == [None, None, None, "length"]


def test_min_tokens_holds_the_stop_back_without_changing_the_rest(new_engine: NewEngine) -> None:
    text = alone(new_engine, [5, 6, 7])
    engine = new_engine()
    engine.submit(replace(submit(1, [5, 6, 7], stop=(text[0],)), min_tokens=3))

    got = tokens(drain(engine)[1])

    assert text[0] not in got[:3]


def test_a_request_too_long_for_the_context_is_refused_in_words(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.submit(submit(1, [1] * 512))
    engine.submit(submit(2, [300]))

    outputs = drain(engine)

    assert outputs[1][0].error == "512 prompt tokens; fewer than 512 fit"
    assert outputs[2][0].error == "token ids must be within 0..299"


def test_logprobs_are_those_of_the_model(new_engine: NewEngine, runner: Runner) -> None:
    engine = new_engine()
    engine.submit(submit(1, [9, 8, 7], logprobs=3, max_tokens=5, temperature=1.5, seed=3, top_p=0.9))

    outputs = drain(engine)[1]

    text = tokens(outputs)
    logits = full_logits(runner.program.model, runner.params, [9, 8, 7, *text])[2:-1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, output in zip(logprobs, outputs, strict=True):
        assert output.logprobs is not None
        assert output.alternatives is not None
        assert output.logprobs[0] == pytest.approx(row[output.tokens[0]], abs=1e-4)
        assert [a.logprob for a in output.alternatives[0]] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)


def test_logit_bias_forces_and_forbids(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.submit(submit(1, [1, 2], logit_bias={42: 100.0}, max_tokens=3))
    assert tokens(drain(engine)[1]) == [42, 42, 42]

    usual = alone(new_engine, [1, 2])
    engine.submit(submit(2, [1, 2], logit_bias={usual[0]: -100.0}, max_tokens=1))
    assert tokens(drain(engine)[2]) != usual[:1]


def test_a_long_prompt_lets_running_streams_through(new_engine: NewEngine) -> None:
    """Between two tokens of a running stream at most one chunk of somebody's prompt is computed."""
    engine = new_engine()
    engine.submit(submit(1, [1, 2, 3], max_tokens=20))
    engine.step()
    engine.submit(submit(2, list(range(256)), max_tokens=2))

    gaps, gap = [], 0
    while not engine.idle:
        gap = 0 if any(output.request == 1 for output in engine.step()) else gap + 1
        gaps.append(gap)

    assert max(gaps[:12]) == 1
