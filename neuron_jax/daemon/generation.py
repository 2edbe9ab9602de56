"""One request's life from ids to neutral events: its turn, engine, text, end; must not know JSON, SSE or HTTP.

Quiet* → Admitted → (Recited | Grown | Quiet)* → one Ended per choice, among them → end of the iterator

An engine may die under a request. Where nobody has seen anything of its answer yet, the request is run once more on the
next engine, with the same seed; when that has it, `Again` says that whatever came before is void, and a second Admitted
does not come.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

from attrs import define, evolve, field, frozen
from msgspec.structs import replace

from neuron_jax.daemon.admission import AdmissionQueue, Reservation
from neuron_jax.daemon.model_text import Encoded, ModelText
from neuron_jax.daemon.problems import Problem, internal, unavailable
from neuron_jax.errors import EngineDied
from neuron_jax.text.output import OutputDelta
from neuron_jax.text.pieces import Piece
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import Alternative, Output, Progress, Submit

HEARTBEAT = 1.0
"""Seconds of silence after which a Quiet event says that the request still lives."""


@frozen
class Admitted:
    """The engine has the request."""


@frozen
class Quiet:
    """Nothing happened for a while. `waits`: for what, where that is known; of a prompt's tokens `found` were in the cache."""

    waits: Progress | None = None
    found: int = 0


@frozen
class Chosen:
    """One token with its log-probability and the likeliest alternatives. A prompt's first token has none."""

    token: int
    logprob: float | None
    alternatives: Sequence[Alternative]


@frozen
class Grown:
    """New pieces and new tokens of one choice; either may be empty."""

    index: int
    pieces: tuple[Piece, ...]
    chosen: tuple[Chosen, ...]


@frozen
class Recited:
    """The prompt's next tokens, where their log-probabilities are told. `whole`: these were the last."""

    index: int
    chosen: tuple[Chosen, ...]
    whole: bool


@frozen
class Ended:
    """The end of one choice. `finish`: stop | length | tool_calls; `stop`: the string or id that ended it."""

    index: int
    finish: str
    stop: str | int | None


@frozen
class Again:
    """The engine died, and the request is run anew: forget what has come so far."""


Event = Admitted | Quiet | Recited | Grown | Ended | Again


@define
class Usage:
    """Token counts of one request while it runs."""

    completion: int = 0
    reasoning: int = 0
    cached: int = 0

    def add(self, *, completion: int, reasoning: int, cached: int) -> None:
        """Counts what one more output of the engine brought."""
        self.completion += completion
        self.reasoning += reasoning
        self.cached += cached

    def reset(self) -> None:
        """What was counted is of an answer that nobody gets."""
        self.completion = self.reasoning = self.cached = 0


@frozen(eq=False)
class GenerationJob:
    """Everything decided before the engine sees the request: one entry of `submits` and `encoded` per choice."""

    id: str
    model: str  # as the client wrote it
    created: int  # Unix seconds
    text: ModelText
    submits: Sequence[Submit]
    encoded: Sequence[Encoded]
    stops: Sequence[str]
    stop_token_ids: frozenset[int]
    min_tokens: int
    prompt_tokens: int  # each different prompt once
    echoes: Sequence[str] = ()  # by choice, what is told before its answer; none = nothing
    recites: bool = False  # `logprobs` has those of the prompts' tokens, too
    alternatives: int | None = None  # to each token of an answer; None = no log-probabilities are told
    prompt_alternatives: int | None = None  # the same of the prompts' tokens, told apart from the answer
    hidden: bool = False  # of an answer nothing is wanted: engines make one token at least
    told: int | None = None  # of so many choices after each prompt, the likeliest ones are told; None = all
    usage: Usage = field(factory=Usage)


class ServingModel(Protocol):
    """The loaded model that answers.

    `ready` is True when there is an engine within so many seconds, and raises Problem when there will be none; right after
    it `engine` gives the one for this `prompt`.
    """

    @property
    def admission(self) -> AdmissionQueue: ...

    async def ready(self, seconds: float) -> bool: ...

    def engine(self, prompt: Sequence[int]) -> EngineClient: ...


class GrowingChoice:
    """One answer while it grows."""

    def __init__(self, job: GenerationJob, index: int) -> None:
        self._index = index
        self._usage = job.usage
        # Of several choices after one prompt the first is the one that the engine computes the prompt for.
        self._pays = index == 0 or job.encoded[index] is not job.encoded[index - 1]
        self._stop_token_ids = job.stop_token_ids
        self._text = job.text.output(job.encoded[index], job.stops, job.min_tokens, f"call_{job.id}_{index}_")
        self._begins = len(job.submits[index].begins)
        self._hidden = job.hidden
        self._alternatives = job.alternatives
        self._reasoning = 0
        self._seen = 0

    def feed(self, output: Output) -> Sequence[Recited | Grown | Ended]:
        """The events of one engine output."""
        recited = min(self._begins, len(output.tokens))
        self._begins -= recited
        events = [Recited(self._index, _chosen(output, recited), self._begins == 0)] if recited else []
        if recited and recited == len(output.tokens) and output.finish is None:
            self._count(output, 0)
            return events
        return [*events, *self._drawn(_behind(output, len(output.tokens) if self._hidden else recited))]

    def _drawn(self, output: Output) -> Sequence[Grown | Ended]:
        stopped = output.finish == "stop"
        shown = output.tokens[:-1] if stopped else output.tokens
        delta = self._text.feed(shown)
        counted = delta.tokens_seen - self._seen if delta.ended else len(output.tokens)
        self._seen = delta.tokens_seen
        self._count(output, counted)
        chosen = fewer(_chosen(output, min(counted, len(shown))), self._alternatives)
        grown = Grown(self._index, delta.pieces, chosen)
        if delta.ended:
            return [grown, self._end("stop", delta.stop)]
        if output.finish is None:
            return [grown]
        return [grown, *self._close(output)]

    def _close(self, output: Output) -> Sequence[Grown | Ended]:
        last: OutputDelta = self._text.close(cut=output.finish == "length")
        grown = [Grown(self._index, last.pieces, ())] if last.pieces else []
        if last.stop is not None:
            return [*grown, self._end("stop", last.stop)]
        if output.finish in ("length", "complete"):
            return [*grown, self._end("length" if output.finish == "length" else "stop", None)]
        token = output.tokens[-1]
        return [*grown, self._end("stop", token if token in self._stop_token_ids else None)]

    def _end(self, finish: str, stop: str | int | None) -> Ended:
        called = self._text.called_tools and finish == "stop"
        return Ended(self._index, "tool_calls" if called else finish, stop)

    def _count(self, output: Output, tokens: int) -> None:
        reasoning = self._text.reasoning_tokens
        cached = output.cached_tokens if self._pays else 0
        self._usage.add(completion=tokens, reasoning=reasoning - self._reasoning, cached=cached)
        self._reasoning = reasoning


async def generate(
    host: ServingModel, job: GenerationJob, reservation: Reservation, *, non_streaming: bool = False
) -> AsyncGenerator[Event, None]:
    """Runs `job` when it is its `reservation`'s turn, and once more when its engine dies before anybody saw anything of it.

    `non_streaming`: nothing is passed on until all is there. Raises Problem when it waits too long or a choice fails,
    EngineDied when its engine does. It keeps its slot while it waits for the next engine: it was its turn, and the new
    engine has as many slots as the old one, so nobody has to be sent away for it.
    """
    while not await reservation.wait(HEARTBEAT):
        yield Quiet(Progress("queued", 0, reservation.ahead, "requests"))
    seen = _Seen(non_streaming)
    try:
        async with aclosing(_run(host, job)) as events:
            async for event in events:
                seen.add(event)
                yield event
    except EngineDied:
        if not seen.nothing:
            raise
    else:
        return
    try:
        async with aclosing(_run(host, job)) as events:
            async for event in events:
                if isinstance(event, Admitted):
                    job.usage.reset()
                    yield Again()
                if not (seen.admitted and isinstance(event, Admitted)):
                    yield event
    except Problem as problem:  # whoever reads this should know that an engine has died of the request, perhaps
        problem.add(engine_died=True)
        raise


class _Seen:
    """What the client has seen of one request."""

    def __init__(self, non_streaming: bool) -> None:
        self._non_streaming = non_streaming
        self._answer = False
        self.admitted = False

    @property
    def nothing(self) -> bool:
        """True while another answer can take this one's place: heartbeats and a role are nothing of it."""
        return self._non_streaming or not self._answer

    def add(self, event: Event) -> None:
        self.admitted = self.admitted or isinstance(event, Admitted)
        match event:
            case Grown(_, pieces, chosen) if pieces or chosen:
                self._answer = True
            case Recited() | Ended():
                self._answer = True


async def _run(host: ServingModel, job: GenerationJob) -> AsyncGenerator[Event, None]:
    """One run of `job`, on the engine that there is now or is next."""
    async with aclosing(until_ready(host)) as silence:
        async for quiet in silence:
            yield quiet
    bound = any(submit.constraint is not None for submit in job.submits)
    engine = host.engine(job.submits[0].prompt)
    with engine.submit(*job.submits, vocabulary=job.text.vocabulary if bound else None) as outputs:
        yield Admitted()
        choices = [GrowingChoice(job, index) for index in range(len(job.submits))]
        begun = any(
            submit.prompt != job.submits[0].prompt for submit in job.submits
        )  # how far each is would be told of none
        while outputs.open:
            output = await outputs.next(HEARTBEAT)
            if output is None:
                read, found = outputs.read
                prompt = Progress("prompt", read, len(job.submits[0].prompt), "tokens")
                yield Quiet() if begun else Quiet(prompt, found)
                continue
            begun = True
            for event in _absorb(output, choices[outputs.index(output)]):
                if isinstance(event, Ended):
                    outputs.cancel(output.request)
                yield event


async def until_ready(host: ServingModel) -> AsyncGenerator[Quiet, None]:
    """Ends when there is an engine to submit to. Raises Problem when there will be none, or not in the longest wait."""
    loop = asyncio.get_running_loop()
    limit = host.admission.max_wait_secs
    deadline = loop.time() + limit
    while not await host.ready(max(0.0, min(HEARTBEAT, deadline - loop.time()))):
        if loop.time() >= deadline:
            raise unavailable(f"Waited {limit:g} seconds for the engine to be started again.")
        yield Quiet(Progress("starting the engine", 0, 0, ""))


def _absorb(output: Output, choice: GrowingChoice) -> Sequence[Recited | Grown | Ended]:
    if output.finish == "error":
        raise _failed(output)
    return choice.feed(output)


def _behind(output: Output, tokens: int) -> Output:
    """It without the first of its tokens. Where the one that ended it is among them it is as long as it could be."""
    if tokens == 0:
        return output
    rest = {
        "tokens": output.tokens[tokens:],
        "logprobs": output.logprobs and output.logprobs[tokens:],
        "alternatives": output.alternatives and output.alternatives[tokens:],
        "finish": "length" if output.finish == "stop" and tokens == len(output.tokens) else output.finish,
    }
    return replace(output, **rest)


def _failed(output: Output) -> Problem:
    return internal(f"The engine could not go on with this request: {output.error or 'it did not say why'}.")


def _chosen(output: Output, count: int) -> tuple[Chosen, ...]:
    if output.logprobs is None:
        return ()
    alternatives = output.alternatives or [[] for _ in output.tokens]
    rows = zip(output.tokens, output.logprobs, alternatives, strict=True)
    return tuple(Chosen(token, logprob, others) for token, logprob, others in rows)[:count]


def fewer(chosen: tuple[Chosen, ...], most: int | None) -> tuple[Chosen, ...]:
    """With so many alternatives at most, the likeliest; None: nothing of them is told."""
    if most is None or not chosen:
        return ()
    if all(len(one.alternatives) <= most for one in chosen):
        return chosen
    return tuple(evolve(one, alternatives=one.alternatives[:most]) for one in chosen)
