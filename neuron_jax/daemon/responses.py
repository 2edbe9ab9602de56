"""Answers as ASGI: JSON, a stream of events, and what happens when the client goes away; must not know models."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response
from litestar.types import Receive, Scope, Send

from neuron_jax.daemon.problems import Problem

T = TypeVar("T")
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
CLIENT_CLOSED = 499
"""The status nobody sees: the client left before the answer. It shows in metrics and tests only."""


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    """`value` as JSON."""
    return Response(
        msgspec.json.encode(value), status_code=status, media_type="application/json", headers=dict(headers or {})
    )


def problem_response(problem: Problem) -> Response[bytes]:
    """The envelope."""
    return json_response(problem.envelope(), problem.status, problem.headers())


class EventStream(Response[None]):
    """A `text/event-stream` of `body`, which is closed when the client goes away, before anything else happens."""

    def __init__(self, body: AsyncGenerator[bytes, None]) -> None:
        super().__init__(None)
        self._stream = body

    def to_asgi_response(self, *_: Any, **__: Any) -> Any:
        """The ASGI app that sends it."""
        return self._run

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await unless_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        headers = [(key.lower().encode(), value.encode()) for key, value in STREAM_HEADERS.items()]
        headers.append((b"content-type", b"text/event-stream; charset=utf-8"))
        async with aclosing(self._stream) as chunks:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def primed(chunks: AsyncGenerator[bytes, None]) -> EventStream:
    """The stream of `chunks`, once the first has come: what goes wrong before it is still an error status."""
    first = await anext(chunks)
    return EventStream(_after(first, chunks))


async def _after(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for chunk in rest:
            yield chunk


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None when the client went away first; `work` has ended by then, cancelled."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    return None if task.cancelled() else task.result()


async def non_streaming_answer(request: Request[Any, Any, Any], work: Coroutine[Any, Any, Any]) -> Response[bytes]:
    """`work`'s result as JSON; `work` is cancelled when the client goes away."""
    value = await unless_gone(request.receive, work)
    return json_response({}, CLIENT_CLOSED) if value is None else json_response(value)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
