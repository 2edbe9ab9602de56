"""Runs one case on an engine and notes when tokens come; knows submit, step and cancel, must not know what is in a step."""

from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field

from neuron_jax.benchmark.cases import Decode, LongPrompt, Prefill, prompt
from neuron_jax.benchmark.figures import Stream
from neuron_jax.errors import NeuronError
from neuron_jax.workers.frames import Output, Sampling, Submit

SETTLED = 16
"""Arrivals of every stream before a long prompt is sent beside them."""


@define(eq=False)
class Drive:
    """One engine under a clock in seconds. Requests are greedy and run to their last token."""

    engine: Any
    clock: Callable[[], float]
    vocab: int
    _last: int = field(default=0, init=False)
    _sent: dict[int, float] = field(factory=dict, init=False)
    _arrivals: dict[int, list[tuple[float, int]]] = field(factory=dict, init=False)
    _open: set[int] = field(factory=set, init=False)

    def decode(self, case: Decode, attempt: int) -> list[Stream]:
        """Every stream of the case, from its start to its end."""
        requests = self._send_streams(case, attempt, case.generate)
        self._until(lambda: not self._open)
        return [self._stream(request) for request in requests]

    def prefill(self, case: Prefill, attempt: int) -> Stream:
        """The one request of the case."""
        request = self._send(prompt(case, attempt, 0, length=case.prompt, vocab=self.vocab), 1)
        self._until(lambda: not self._open)
        return self._stream(request)

    def beside(self, case: LongPrompt, attempt: int) -> tuple[list[Stream], Stream]:
        """The running streams, cut off when the long prompt has its first token, and the long prompt."""
        requests = self._send_streams(case, attempt, self.engine.max_context - case.prompt)
        self._until(lambda: all(len(self._arrivals[request]) > SETTLED for request in requests))
        long = self._send(prompt(case, attempt, len(requests), length=case.long, vocab=self.vocab), 1)
        self._until(lambda: long not in self._open)
        ended = [request for request in requests if request not in self._open]
        if ended:
            raise NeuronError(f"{case}: a stream ended before the prompt was in; a larger max_context gives them room")
        for request in requests:
            self.engine.cancel(request)
            self._open.discard(request)
        self._until(lambda: self.engine.idle)
        return [self._stream(request) for request in requests], self._stream(long)

    def _send_streams(self, case: Decode | LongPrompt, attempt: int, tokens: int) -> list[int]:
        prompts = [prompt(case, attempt, i, length=case.prompt, vocab=self.vocab) for i in range(case.streams)]
        return [self._send(ids, tokens) for ids in prompts]

    def _send(self, ids: Sequence[int], tokens: int) -> int:
        self._last += 1
        request = self._last
        self._sent[request], self._arrivals[request] = self.clock(), []
        self._open.add(request)
        self.engine.submit(Submit(request, list(ids), Sampling(temperature=0.0), tokens, ignore_eos=True))
        return request

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            outputs = self.engine.step()
            now = self.clock()
            for output in outputs:
                self._take(output, now)

    def _take(self, output: Output, now: float) -> None:
        if output.error is not None:
            raise NeuronError(f"the engine refused a request: {output.error}")
        if output.tokens:
            self._arrivals[output.request].append((now, len(output.tokens)))
        if output.finish is not None:
            self._open.discard(output.request)

    def _stream(self, request: int) -> Stream:
        return Stream(self._sent.pop(request), tuple(self._arrivals.pop(request)))
