"""One chat or completion from body to answer: checks, tokens, engine, encoder, metrics; must not know routes."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

from attrs import frozen
from litestar import Request, Response

from neuron_jax.build_info import BuildInfo
from neuron_jax.constraints.errors import GrammarError
from neuron_jax.daemon.admission import AdmissionQueue, Reservation
from neuron_jax.daemon.bodies import read_body
from neuron_jax.daemon.chat_wire import ChatAnswer, ChatStream
from neuron_jax.daemon.completion_wire import CompletionAnswer, CompletionStream
from neuron_jax.daemon.embed_schema import refuse_kind
from neuron_jax.daemon.fields import decode_object
from neuron_jax.daemon.generation import HEARTBEAT, Admitted, Again, Event, GenerationJob, Grown, Quiet, generate
from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.daemon.metrics import Metrics, RequestTimer
from neuron_jax.daemon.model_text import ModelText
from neuron_jax.daemon.params_schema import SamplingParams
from neuron_jax.daemon.prepare import Outside, chat_job, completion_job, fitting, render_chat, with_bound_calls
from neuron_jax.daemon.problems import Problem, internal, recovering
from neuron_jax.daemon.resident import ResidentModel
from neuron_jax.daemon.responses import non_streaming_answer, primed
from neuron_jax.daemon.schema import (
    ChatRequest,
    TokenizeRequest,
    read_chat,
    read_completion,
    read_detokenize,
    read_tokenize,
)
from neuron_jax.daemon.wire_common import DONE_LINE, Beats, prompt_progress, sse, sse_problem, usage_line
from neuron_jax.errors import EngineDied

LONG_BODY = 16 * 1024
"""Bytes from which on reading, rendering and tokenizing go to a thread: some milliseconds for everybody else."""
COUNTED, LEAST_COUNTED = 2, 65_536
"""Of how many contexts, and of how many tokens, POST /tokenize counts a text: clients ask what is too long as well."""
T = TypeVar("T")
_log = logging.getLogger("neuron.daemon")


@frozen(eq=False)
class NeuronServices:
    """What the routes work with."""

    lifecycle: Lifecycle
    metrics: Metrics
    build: BuildInfo
    pool: ThreadPoolExecutor
    counting: AdmissionQueue  # the line in front of POST /tokenize
    started: float  # time.monotonic() at start

    async def offload(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)`, in a thread when the body was of a `size` that would hold up the others."""
        if size < LONG_BODY:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)


class StreamEncoder(Protocol):
    """Events to chunks; `ChatStream` and `CompletionStream` are."""

    def feed(self, event: Event) -> list[dict[str, Any]]: ...

    def idle(self) -> dict[str, Any]: ...

    def close(self) -> list[dict[str, Any]]: ...


class AnswerEncoder(Protocol):
    """Events to one body; `ChatAnswer` and `CompletionAnswer` are."""

    def feed(self, event: Event) -> None: ...

    def body(self, params: SamplingParams) -> dict[str, Any]: ...


Ask = Request[Any, Any, Any]


@frozen
class GenerationRoute:
    """What makes chat differ from completions: reading, rendering, encoding, answering."""

    prefix: str  # of the answer's id
    read: Callable[[dict[str, Any]], Any]
    job: Callable[[NeuronServices, "ReceivedRequest"], Awaitable[GenerationJob]]
    stream: Callable[[GenerationJob, SamplingParams], StreamEncoder]
    answer: Callable[[GenerationJob], AnswerEncoder]


@frozen(eq=False)
class ReceivedRequest:
    """A request that was read, of `size` bytes, and who is to answer it."""

    wanted: Any  # ChatRequest or CompletionRequest
    size: int
    resident: ResidentModel
    route: GenerationRoute
    watch: RequestTimer
    adapter: int = 0

    @property
    def params(self) -> SamplingParams:
        """What it asks of generation."""
        params: SamplingParams = self.wanted.params
        return params

    def outside(self) -> Outside:
        """What its job needs from outside."""
        return Outside(
            id=self.route.prefix + secrets.token_hex(16),
            seed=secrets.randbits(64),
            created=int(time.time()),
            max_context=self.resident.max_context,
            adapter=self.adapter,
        )


async def _chat_job(neuron: NeuronServices, asked: ReceivedRequest) -> GenerationJob:
    text, outside = asked.resident.text, asked.outside()
    prompt = await render_chat(neuron.lifecycle.renderers.render, asked.wanted, text, outside)
    return await neuron.offload(asked.size, chat_job, asked.wanted, prompt, text, outside)


async def _completion_job(neuron: NeuronServices, asked: ReceivedRequest) -> GenerationJob:
    return await neuron.offload(asked.size, completion_job, asked.wanted, asked.resident.text, asked.outside())


CHAT = GenerationRoute("chatcmpl-", read_chat, _chat_job, ChatStream, ChatAnswer)
COMPLETIONS = GenerationRoute("cmpl-", read_completion, _completion_job, CompletionStream, CompletionAnswer)


async def complete(neuron: NeuronServices, request: Ask, route: GenerationRoute) -> Response[Any]:
    """POST /v1/chat/completions and /v1/completions, from body to answer."""
    began = time.monotonic()
    wanted, size = await read_request(neuron, request, route.read)
    resident, adapter = neuron.lifecycle.addressed(wanted.params.model)
    refuse_kind(wanted.params.model, resident.text.abilities.capabilities, "text")
    if isinstance(wanted, ChatRequest):
        wanted = with_bound_calls(wanted, resident.text)
    asked = ReceivedRequest(wanted, size, resident, route, neuron.metrics.begin(resident.id, began), adapter)
    if asked.params.stream:
        return await primed(stream_chunks(neuron, asked))
    return await non_streaming_answer(request, collected(neuron, asked))


async def tokenize(neuron: NeuronServices, request: Ask) -> dict[str, Any]:
    """POST /tokenize."""
    wanted, size = await read_request(neuron, request, read_tokenize)
    text, limit = await neuron.lifecycle.text(wanted.model)
    with neuron.counting.enter(1) as reservation:
        while not await reservation.wait(HEARTBEAT):
            pass
        with fitting("messages" if wanted.prompt is None else "prompt", limit):
            ids = await _count(neuron, wanted, size, text, max(COUNTED * limit, LEAST_COUNTED))
    told = {"count": len(ids), "tokens": ids, "max_model_len": limit}
    if wanted.names:
        told["token_strs"] = [text.tokenizer.piece(id_).decode("utf-8", "replace") for id_ in ids]
    return told


async def detokenize(neuron: NeuronServices, request: Ask) -> dict[str, Any]:
    """POST /detokenize."""
    wanted, size = await read_request(neuron, request, read_detokenize)
    text, _ = await neuron.lifecycle.text(wanted.model)
    text.check_ids("tokens", wanted.tokens)
    return {"prompt": await neuron.offload(size, partial(text.tokenizer.decode, wanted.tokens, skip_special=False))}


async def _count(
    neuron: NeuronServices, wanted: TokenizeRequest, size: int, text: ModelText, most: int
) -> Sequence[int]:
    if wanted.prompt is not None:
        encode = partial(text.encode_prompt, "prompt", wanted.prompt, most, special=wanted.special)
        return (await neuron.offload(size, encode)).ids
    assert wanted.chat is not None
    prompt = await text.render_chat(neuron.lifecycle.renderers.render, wanted.chat, most)
    return (await neuron.offload(size, partial(text.encode_chat, prompt, tools=False, most=most))).ids


async def read_request(neuron: NeuronServices, request: Ask, read: Callable[[dict[str, Any]], T]) -> tuple[T, int]:
    """What the request asks for, and how many bytes said so. Raises Problem."""
    body = await read_body(request)
    return await neuron.offload(len(body), lambda: read(decode_object(body))), len(body)


@asynccontextmanager
async def placed(
    neuron: NeuronServices, asked: ReceivedRequest
) -> AsyncGenerator[tuple[GenerationJob, Reservation], None]:
    """A place in the model's line for as long as the block runs, and the job. Raises Problem.

    The place comes first: what renders and counts a prompt is bounded like everything else that a model does.
    """
    try:
        reservation = asked.resident.admission.enter(asked.wanted.answers)
    except Problem as problem:
        asked.watch.end(outcome_of(problem), None)
        raise
    with reservation:
        await _check_form(neuron, asked)
        yield await asked.route.job(neuron, asked), reservation


async def _check_form(neuron: NeuronServices, asked: ReceivedRequest) -> None:
    """Raises Problem where the form that the answer is to have is none, or nobody here can hold it to that."""
    form = asked.params.form
    if form is None:
        return
    try:
        await neuron.lifecycle.renderers.check(form.constraint)
    except GrammarError as error:
        raise form.refused(error) from error


async def stream_chunks(neuron: NeuronServices, asked: ReceivedRequest) -> AsyncGenerator[bytes, None]:
    """The bytes of the stream. A failure before the first of them is raised; later ones are an event, and the end."""
    async with placed(neuron, asked) as (job, reservation), aclosing(_chunks(asked, job, reservation)) as chunks:
        async for chunk in chunks:
            yield chunk


async def _chunks(asked: ReceivedRequest, job: GenerationJob, reservation: Reservation) -> AsyncGenerator[bytes, None]:
    encoder, beats = asked.route.stream(job, asked.params), Beats()
    begun, told, outcome, last = False, False, "cancelled", time.monotonic()
    began = last
    try:
        async with aclosing(generate(asked.resident, job, reservation)) as events:
            async for event in events:
                asked.watch.see(event)
                data = b"".join(sse(chunk) for chunk in encoder.feed(event))
                if data and isinstance(event, Grown) and not told:
                    told, data = True, usage_line(job) + data
                if data:
                    beats.broken()
                elif isinstance(event, Quiet) or time.monotonic() - last >= HEARTBEAT:
                    data = _beat(asked.params, event, beats, encoder.idle(), time.monotonic() - began)
                if data or isinstance(event, Admitted):
                    begun, last = True, time.monotonic()
                    yield data
        yield b"".join(sse(chunk) for chunk in encoder.close()) + usage_line(job) + DONE_LINE
        outcome = "ok"
    except Exception as error:
        problem = as_problem(asked.resident.id, error)
        outcome = outcome_of(problem)
        if not begun:
            raise problem from error
        yield sse_problem(problem)
    finally:
        asked.watch.end(outcome, job)


def _beat(params: SamplingParams, event: Event, beats: Beats, idle: dict[str, Any], seconds: float) -> bytes:
    """A sign of life, `seconds` after the stream's beginning."""
    if not isinstance(event, Quiet):
        return beats.next(idle)
    prompt = prompt_progress(event, seconds) if params.tells_progress else {}
    return sse(idle | prompt) if prompt else beats.next(idle, event.waits)


async def collected(neuron: NeuronServices, asked: ReceivedRequest) -> dict[str, Any]:
    """The non-streaming answer. Raises Problem."""
    async with placed(neuron, asked) as (job, reservation):
        return await _collect(asked, job, reservation)


async def _collect(asked: ReceivedRequest, job: GenerationJob, reservation: Reservation) -> dict[str, Any]:
    outcome, answer = "cancelled", asked.route.answer(job)
    try:
        async with aclosing(generate(asked.resident, job, reservation, non_streaming=True)) as events:
            async for event in events:
                asked.watch.see(event)
                if isinstance(event, Again):
                    answer = asked.route.answer(job)
                answer.feed(event)
        outcome = "ok"
        return answer.body(asked.params)
    except Exception as error:
        problem = as_problem(asked.resident.id, error)
        outcome = outcome_of(problem)
        raise problem from error
    finally:
        asked.watch.end(outcome, job)


def as_problem(model: str, error: Exception) -> Problem:
    """What a client is told about `error`; what we did not expect goes to the log."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, EngineDied):
        return recovering(model, str(error), engine_died=True)
    _log.error("a request to %s failed", model, exc_info=error)
    return internal()


def outcome_of(problem: Problem) -> str:
    """The metrics' word for it."""
    return "rejected" if problem.code == "rate_limit_exceeded" else "error"
