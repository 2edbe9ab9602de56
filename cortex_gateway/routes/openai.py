"""/v1/chat/completions and /v1/completions: the neuron's own routes, passed through byte by byte."""

import contextlib
from functools import partial
from typing import Any

import httpx
from litestar import Request, post
from litestar.types import ASGIApp

from cortex_gateway.dialects import openai_request
from cortex_gateway.dialects.openai_chat import CUT_SHORT
from cortex_gateway.dialects.openai_scan import StreamRelay, whole_usage
from cortex_gateway.routes.exchange import Exchange, Outgoing, exchange, read, reading
from cortex_gateway.routes.failures import OPENAI, refusal
from cortex_gateway.routes.gateway import Gateway
from cortex_gateway.stream import STREAM_HEADERS


@post("/v1/chat/completions")
async def chat_completions(request: Request[Any, Any, Any]) -> ASGIApp:
    """Chat in the neuron's own dialect."""
    work = partial(_pass, path="/v1/chat/completions")
    return exchange(Gateway.of(request.app.state), "chat", OPENAI, work)


@post("/v1/completions")
async def completions(request: Request[Any, Any, Any]) -> ASGIApp:
    """Completions of a bare prompt."""
    work = partial(_pass, path="/v1/completions")
    return exchange(Gateway.of(request.app.state), "completions", OPENAI, work)


async def _pass(it: Exchange, body: bytes, *, path: str) -> None:
    request = openai_request.read(body)
    outgoing = Outgoing(model=request.model, path=path, body=request.addressed, stream=request.stream)
    await (_stream(it, outgoing) if request.stream else _whole(it, outgoing))


async def _whole(it: Exchange, outgoing: Outgoing) -> None:
    async with it.answered(outgoing) as response:
        raw = await read(response)
        it.record.usage = whole_usage(raw)
        media = response.headers.get("content-type", "application/json")
        await it.client.answer(response.status_code, raw, [(b"content-type", media.encode("latin-1"))])


async def _stream(it: Exchange, outgoing: Outgoing) -> None:
    async with contextlib.AsyncExitStack() as stack, it.client.beating(OPENAI.beat, it.gateway.beat_seconds):
        response = await stack.enter_async_context(it.answered(outgoing))
        if not it.client.started:
            await it.client.start(200, STREAM_HEADERS)
        await _relay(it, response)


async def _relay(it: Exchange, response: httpx.Response) -> None:
    relay = StreamRelay()
    try:
        with reading():
            async for chunk in response.aiter_raw():
                ready = relay.feed(chunk)
                if relay.passed:
                    it.record.token(relay.passed)
                if ready:
                    await it.client.write(ready)
    finally:
        it.record.usage = relay.usage()
    if relay.failure:
        it.record.failed(relay.failure)
    elif not relay.done:
        raise refusal(CUT_SHORT)
    await it.client.end(relay.rest)
