"""One chat or completion from body to answer: checks, tokens, engine, encoder, metrics; must not know routes."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from attrs import frozen
from litestar import Request, Response

from neuron_jax.build_info import BuildInfo
from neuron_jax.daemon.chat_wire import ChatAnswer, ChatStream
from neuron_jax.daemon.completion_wire import CompletionAnswer, CompletionStream
from neuron_jax.daemon.fields import decode_object
from neuron_jax.daemon.generation import HEARTBEAT, Admitted, Again, Event, Job, Quiet, generate
from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.daemon.metrics import Metrics, Observation
from neuron_jax.daemon.model_text import ModelText
from neuron_jax.daemon.prepare import Outside, chat_job, completion_job
from neuron_jax.daemon.problems import Problem, internal, recovering
from neuron_jax.daemon.resident import Resident
from neuron_jax.daemon.responses import primed, whole_answer
from neuron_jax.daemon.schema import TokenizeRequest, Wish, read_chat, read_completion, read_tokenize
from neuron_jax.daemon.wire_common import DONE_LINE, HEARTBEAT_LINE, sse, sse_problem, usage_line
from neuron_jax.errors import EngineDied

LONG_BODY = 16 * 1024
"""Bytes from which on reading, rendering and tokenizing go to a thread: some milliseconds for everybody else."""
T = TypeVar("T")
_log = logging.getLogger("neuron.daemon")


@frozen(eq=False)
class Neuron:
    """What the routes work with."""

    lifecycle: Lifecycle
    metrics: Metrics
    build: BuildInfo
    pool: ThreadPoolExecutor
    started: float  # time.monotonic() at start

    async def offload(self, size: int, work: Callable[..., T], *arguments: Any) -> T:
        """`work(*arguments)`, in a thread when the body was of a `size` that would hold up the others."""
        if size < LONG_BODY:
            return work(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.pool, work, *arguments)


class StreamEncoder(Protocol):
    """Events to chunks; `ChatStream` and `CompletionStream` are."""

    def feed(self, event: Event) -> list[dict[str, Any]]: ...

    def close(self) -> list[dict[str, Any]]: ...


class AnswerEncoder(Protocol):
    """Events to one body; `ChatAnswer` and `CompletionAnswer` are."""

    def feed(self, event: Event) -> None: ...

    def body(self, wish: Wish) -> dict[str, Any]: ...


Ask = Request[Any, Any, Any]


@frozen
class Route:
    """What makes chat differ from completions: reading, encoding, answering."""

    prefix: str  # of the answer's id
    read: Callable[[dict[str, Any]], Any]
    job: Callable[[Any, ModelText, Outside], Job]
    stream: Callable[[Job, Wish], StreamEncoder]
    answer: Callable[[Job], AnswerEncoder]


CHAT = Route("chatcmpl-", read_chat, chat_job, ChatStream, ChatAnswer)
COMPLETIONS = Route("cmpl-", read_completion, completion_job, CompletionStream, CompletionAnswer)


async def complete(neuron: Neuron, request: Ask, route: Route) -> Response[Any]:
    """POST /v1/chat/completions and /v1/completions, from body to answer."""
    began = time.monotonic()
    body = await request.body()
    wanted = await neuron.offload(len(body), lambda: route.read(decode_object(body)))
    wish: Wish = wanted.wish
    resident = neuron.lifecycle.serving(wish.model)
    job = await neuron.offload(len(body), route.job, wanted, resident.text, _outside(route.prefix, resident))
    watch = neuron.metrics.begin(resident.id, began)
    if wish.stream:
        return await primed(stream_chunks(resident, job, route.stream(job, wish), watch))
    return await whole_answer(request, collected(resident, job, wish, route.answer, watch))


async def tokenize(neuron: Neuron, body: bytes) -> dict[str, Any]:
    """POST /tokenize."""
    wanted = await neuron.offload(len(body), lambda: read_tokenize(decode_object(body)))
    text, limit = await neuron.lifecycle.text(wanted.model)
    ids = await neuron.offload(len(body), _encode, wanted, text)
    return {"count": len(ids), "tokens": ids, "max_model_len": limit}


async def stream_chunks(
    resident: Resident, job: Job, encoder: StreamEncoder, watch: Observation
) -> AsyncGenerator[bytes, None]:
    """The bytes of the stream. A failure before the first of them is raised; later ones are an event, and the end."""
    begun, outcome, last = False, "cancelled", time.monotonic()
    try:
        async with aclosing(generate(resident, job)) as events:
            async for event in events:
                watch.see(event)
                data = b"".join(sse(chunk) for chunk in encoder.feed(event))
                if not data and (isinstance(event, Quiet) or time.monotonic() - last >= HEARTBEAT):
                    data = HEARTBEAT_LINE
                if data or isinstance(event, Admitted):
                    begun, last = True, time.monotonic()
                    yield data
        yield b"".join(sse(chunk) for chunk in encoder.close()) + usage_line(job) + DONE_LINE
        outcome = "ok"
    except Exception as error:
        problem = as_problem(resident.id, error)
        outcome = outcome_of(problem)
        if not begun:
            raise problem from error
        yield sse_problem(problem)
    finally:
        watch.end(outcome, job)


async def collected(
    resident: Resident, job: Job, wish: Wish, begin: Callable[[Job], AnswerEncoder], watch: Observation
) -> dict[str, Any]:
    """The whole answer. Raises Problem."""
    outcome, answer = "cancelled", begin(job)
    try:
        async with aclosing(generate(resident, job, whole=True)) as events:
            async for event in events:
                watch.see(event)
                if isinstance(event, Again):
                    answer = begin(job)
                answer.feed(event)
        outcome = "ok"
        return answer.body(wish)
    except Exception as error:
        problem = as_problem(resident.id, error)
        outcome = outcome_of(problem)
        raise problem from error
    finally:
        watch.end(outcome, job)


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


def _outside(prefix: str, resident: Resident) -> Outside:
    return Outside(
        id=prefix + secrets.token_hex(16),
        seed=secrets.randbits(64),
        created=int(time.time()),
        max_context=resident.max_context,
    )


def _encode(wanted: TokenizeRequest, text: ModelText) -> Sequence[int]:
    if wanted.prompt is not None:
        return list(text.encode_prompt("prompt", wanted.prompt).ids)
    assert wanted.messages is not None
    encoded = text.encode_chat(wanted.messages, tools=wanted.tools, variables=wanted.variables, turn=wanted.turn)
    return list(encoded.ids)
