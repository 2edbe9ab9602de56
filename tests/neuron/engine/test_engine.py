"""The engine against a plain causal pass of the same model: text does not depend on company, chunks, pages or accidents."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attrs import define, field
from msgspec.structs import replace

from neuron_jax.engine.batch import Drawn, Step
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.packing import Words
from neuron_jax.engine.programs import Result
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.sampler import MAX_BIAS
from tests.fakes.engines import drain, logprobs, mixed, said, serve, submit, tokens
from tests.fakes.params import slow_but
from tests.fakes.plain_pass import full_logits

NewEngine = Callable[..., Engine]


@define
class Recorder:
    """A runner that notes when steps begin and end."""

    real: Runner
    seen: list[str] = field(factory=list)

    @property
    def compiler(self) -> Any:
        return self.real.compiler

    @property
    def program(self) -> Any:
        return self.real.program

    @property
    def usable(self) -> Any:
        return self.real.usable

    @property
    def dropped(self) -> Any:
        return self.real.dropped

    @property
    def planned(self) -> int:
        return self.real.planned

    def collect(self) -> Any:
        return self.real.collect()

    def pack(self, step: Step) -> Words:
        return self.real.pack(step)

    def dispatch(self, step: Step, packed: Words) -> Result:
        self.seen.append("dispatch")
        return self.real.dispatch(step, packed)

    def fetch(self, step: Step, result: Result) -> Drawn:
        self.seen.append("fetch")
        return self.real.fetch(step, result)


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


@pytest.mark.parametrize("seed", slow_but([0], range(3)))
def test_however_it_is_served_each_request_gets_the_same(new_engine: NewEngine, seed: int) -> None:
    """Overlapped or not, one token at a time or several, with pages for all or for few: as alone in the plain loop."""
    clients = mixed(seed)
    expected = {}
    for client in clients:
        plain = new_engine(overlap=False, steps=1)
        plain.submit(client.submit)
        expected[client.submit.request] = drain(plain)[client.submit.request]

    ways: list[dict[str, Any]] = [{"overlap": False, "steps": 1}, {"steps": 1}, {"overlap": False}, {}]
    ways += [{"pages": 9}, {"slots": 1}, {"guessing": True}, {"guessing": True, "overlap": False, "pages": 9}]
    wrong = 0
    for way in ways:
        engine = new_engine(**way)
        got = serve(engine, clients)

        for client in clients:
            whole, part = expected[client.submit.request], got[client.submit.request]
            count = None if client.leave is None else len(tokens(part))
            assert said(part) == said(whole) if count is None else tokens(part) == tokens(whole)[:count], (way, client)
            for ours, theirs in zip(logprobs(part), logprobs(whole)[:count], strict=True):
                assert ours == pytest.approx(theirs, abs=1e-4)
        assert engine.scheduler.cache.free == engine.scheduler.cache.total
        assert bool(engine.scheduler.preemptions) == ("pages" in way)
        load = engine.load
        assert (load.right_guesses > 0) == way.get("guessing", False)
        wrong += load.guessed_tokens - load.right_guesses
    assert wrong > 0


def test_serving_compiles_nothing(new_engine: NewEngine, runner: Runner) -> None:
    """All that mixed traffic needs was compiled before."""
    engine = new_engine(guessing=True)
    before = runner.compiler.unplanned
    serve(engine, mixed(7))

    assert engine.load.steps > 100
    assert engine.load.steady_compiles == runner.compiler.unplanned == before


def test_the_device_is_never_left_waiting_for_the_host(new_engine: NewEngine, runner: Runner) -> None:
    """Overlapped, the next step is dispatched before the last is fetched; plain, never two are under way."""
    for overlap in (True, False):
        events = Recorder(runner)
        engine = new_engine(overlap=overlap)
        engine.runner = events
        engine.submit(submit(1, [1, 2, 3], max_tokens=9))
        drain(engine)

        under_way = [
            sum(1 if event == "dispatch" else -1 for event in events.seen[:i]) for i in range(len(events.seen))
        ]
        assert max(under_way) == (2 if overlap else 1)
        assert events.seen[:3] == (["dispatch"] * 2 + ["fetch"] if overlap else ["dispatch", "fetch", "dispatch"])


def test_a_text_that_repeats_itself_takes_fewer_steps(new_engine: NewEngine) -> None:
    """The tiny model falls into a loop before long."""
    prompt = [11, 12, 13, 14] * 8
    steps = {}
    for guessing in (False, True):
        engine = new_engine(guessing=guessing, steps=1)
        engine.submit(submit(1, prompt, max_tokens=100))
        text = tokens(drain(engine)[1])
        steps[guessing] = engine.load.steps

    assert len(text) == 100
    assert steps[True] < 0.7 * steps[False]


def test_host_time_is_counted(new_engine: NewEngine) -> None:
    """By a clock that goes on by a millisecond whenever it is looked at."""
    engine = new_engine()
    engine.submit(submit(1, [1, 2, 3], max_tokens=9))
    drain(engine)
    times = engine.times

    assert times.steps == engine.load.steps > 0
    assert [times.pack, times.dispatch, times.wait, times.absorb] == pytest.approx([times.steps / 1000] * 4)
    assert engine.load.host_ms > 0
    assert engine.load.wait_ms == pytest.approx(1)


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
    assert engine.scheduler.cache.free == engine.scheduler.cache.total


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

    assert len(tokens(outputs)) == 4
    assert [output.finish for output in outputs] == [None] * (len(outputs) - 1) + ["length"]


def test_min_tokens_holds_the_stop_back_without_changing_the_rest(new_engine: NewEngine) -> None:
    text = alone(new_engine, [5, 6, 7])
    engine = new_engine()
    engine.submit(replace(submit(1, [5, 6, 7], stop=(text[0],)), min_tokens=3))

    got = tokens(drain(engine)[1])

    assert text[0] not in got[:3]


def test_more_biases_and_stops_than_a_slot_holds_are_refused_in_words(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.submit(submit(1, [1], stop=tuple(range(300)), logit_bias=dict.fromkeys(range(MAX_BIAS - 299), 1.0)))

    assert drain(engine)[1][0].error == f"stop_ids and logit_bias name more than {MAX_BIAS} ids"


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
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, token, (own, *others) in zip(wanted, text, logprobs(outputs), strict=True):
        assert own == pytest.approx(row[token], abs=1e-4)
        assert others == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)


def test_logit_bias_forces_and_forbids(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.submit(submit(1, [1, 2], logit_bias={42: 100.0}, max_tokens=3))
    assert tokens(drain(engine)[1]) == [42, 42, 42]

    usual = alone(new_engine, [1, 2])
    engine.submit(submit(2, [1, 2], logit_bias={usual[0]: -100.0}, max_tokens=1))
    assert tokens(drain(engine)[2]) != usual[:1]


def test_a_long_prompt_lets_running_streams_through(new_engine: NewEngine) -> None:
    """They are in every step, of which the prompt gets as much as they can bear."""
    engine = new_engine(overlap=False)
    engine.submit(submit(1, [1, 2, 3], max_tokens=60))
    for _ in range(5):
        engine.step()
    engine.submit(submit(2, list(range(256)), max_tokens=2))

    seen = []
    while not seen or 2 not in seen[-1]:
        seen.append({output.request for output in engine.step()})

    assert all(1 in who for who in seen)
    assert len(seen) >= 256 // 64
