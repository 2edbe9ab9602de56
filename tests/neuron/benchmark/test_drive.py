"""The driver on an engine whose every step takes one second and gives each request what its script says."""

import pytest
from attrs import define, field

from neuron_jax.benchmark.cases import Decode, LongPrompt, Prefill
from neuron_jax.benchmark.drive import SETTLED, Drive
from neuron_jax.errors import NeuronError
from neuron_jax.workers.frames import Output, Submit


@define
class Steady:
    """An engine: `burst` tokens a step for everybody, a long prompt's only token after `entry` steps."""

    burst: int = 1
    entry: int = 3
    max_context: int = 1000
    now: float = 0.0
    refuses: bool = False
    left: dict[int, int] = field(factory=dict)
    entering: dict[int, int] = field(factory=dict)

    def clock(self) -> float:
        return self.now

    @property
    def idle(self) -> bool:
        return not self.left

    def submit(self, submit: Submit) -> None:
        assert submit.ignore_eos
        assert submit.sampling.temperature == 0
        self.left[submit.request] = submit.max_tokens
        self.entering[submit.request] = self.entry if len(submit.prompt) >= 100 else 0

    def cancel(self, request: int) -> None:
        self.left.pop(request)

    def step(self) -> list[Output]:
        self.now += 1
        return [self._output(request) for request in tuple(self.left)]

    def _output(self, request: int) -> Output:
        if self.refuses:
            return Output(request, [], finish="error", error="too long")
        if self.entering[request] > 1:
            self.entering[request] -= 1
            return Output(request, [])
        count = min(self.burst, self.left[request])
        self.left[request] -= count
        if self.left[request]:
            return Output(request, [7] * count)
        del self.left[request]
        return Output(request, [7] * count, finish="length")


def drive(engine: Steady) -> Drive:
    return Drive(engine, engine.clock, vocab=50)


def test_streams_are_sent_at_once_and_noted_as_they_come() -> None:
    first, second = drive(Steady(burst=2)).decode(Decode(2, prompt=3, generate=5), attempt=1)

    assert first == second
    assert first.sent == 0
    assert first.arrivals == ((1, 2), (2, 2), (3, 1))


def test_a_prompt_is_timed_to_its_only_token() -> None:
    """Outputs without tokens are no arrivals."""
    stream = drive(Steady()).prefill(Prefill(100), attempt=1)

    assert (stream.sent, stream.arrivals) == (0, ((3, 1),))


def test_a_long_prompt_is_sent_beside_settled_streams_which_are_then_ended() -> None:
    engine = Steady()
    streams, long = drive(engine).beside(LongPrompt(2, prompt=3, long=100), attempt=1)

    assert (long.sent, long.arrivals) == (SETTLED + 1, ((SETTLED + 4, 1),))
    assert [len(stream.arrivals) for stream in streams] == [SETTLED + 4] * 2
    assert engine.idle


def test_streams_that_end_too_soon_are_told() -> None:
    engine = Steady(max_context=SETTLED + 5)

    with pytest.raises(NeuronError, match="a larger max_context"):
        drive(engine).beside(LongPrompt(2, prompt=3, long=100), attempt=1)


def test_a_refused_request_ends_the_run() -> None:
    with pytest.raises(NeuronError, match="refused a request: too long"):
        drive(Steady(refuses=True)).prefill(Prefill(3), attempt=0)
