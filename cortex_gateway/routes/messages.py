"""/v1/messages and count_tokens: the Messages dialect over a neuron's chat."""

import contextlib
import uuid
from typing import Any

import httpx
import msgspec
from litestar import Request, post
from litestar.types import ASGIApp

from cortex_gateway.dialects.anthropic import request as decoder
from cortex_gateway.dialects.anthropic.request import MessagesRequest
from cortex_gateway.dialects.anthropic.response import whole
from cortex_gateway.dialects.anthropic.stream import MessageEncoder
from cortex_gateway.dialects.events import Error, Event, Finish, Reasoning, Text, ToolArguments, ToolStart
from cortex_gateway.dialects.openai_chat import ChatDecoder, decode_whole
from cortex_gateway.errors import NeuronRefused, NoHealthyNode, UpstreamMalformed, UpstreamUnreachable
from cortex_gateway.routes.exchange import Exchange, Outgoing, exchange, read, reading
from cortex_gateway.routes.failures import ANTHROPIC, refusal
from cortex_gateway.routes.gateway import Gateway, Record
from cortex_gateway.stream import STREAM_HEADERS

CHAT = "/v1/chat/completions"
COUNT_SECONDS = 30.0  # for the longest prompt


@post("/v1/messages")
async def messages(request: Request[Any, Any, Any]) -> ASGIApp:
    """Messages, whole or as a stream. `?beta=true` changes nothing."""
    return exchange(Gateway.of(request.app.state), "messages", ANTHROPIC, _messages)


@post("/v1/messages/count_tokens")
async def count_tokens(request: Request[Any, Any, Any]) -> ASGIApp:
    """The length of the prompt by the model's own template and tokenizer; never loads a model."""
    return exchange(Gateway.of(request.app.state), None, ANTHROPIC, _count)


async def _messages(it: Exchange, body: bytes) -> None:
    request = decoder.decode(body)
    outgoing = Outgoing(model=request.model, path=CHAT, body=request.neuron_body, stream=request.stream)
    await (_stream(it, outgoing) if request.stream else _whole(it, outgoing))


async def _whole(it: Exchange, outgoing: Outgoing) -> None:
    async with it.answered(outgoing) as response:
        events = decode_whole(await read(response))
    _note(it.record, events[-1:])
    message = whole(events, message_id=_message_id(), model=outgoing.model)
    if not isinstance(message, bytes):
        raise refusal(message)
    await it.client.answer(200, message)


async def _stream(it: Exchange, outgoing: Outgoing) -> None:
    async with contextlib.AsyncExitStack() as stack, it.client.beating(ANTHROPIC.beat, it.gateway.beat_seconds):
        response = await stack.enter_async_context(it.answered(outgoing))
        if not it.client.started:
            await it.client.start(200, STREAM_HEADERS)
        await _translate(it, outgoing, response)
        await it.client.end()


async def _translate(it: Exchange, outgoing: Outgoing, response: httpx.Response) -> None:
    decoder = ChatDecoder()
    encoder = MessageEncoder(message_id=_message_id(), model=outgoing.model, request_id=it.client.request_id)
    try:
        with reading():
            async for chunk in response.aiter_raw():
                await _forward(it, encoder, decoder.feed(chunk))
    finally:
        it.record.usage = decoder.usage
    await _forward(it, encoder, decoder.close())


async def _forward(it: Exchange, encoder: MessageEncoder, events: list[Event]) -> None:
    if events:
        _note(it.record, events)
        await it.client.write(b"".join(map(encoder.feed, events)))


def _note(record: Record, events: list[Event]) -> None:
    """What metrics want to know of the events."""
    for event in events:
        if isinstance(event, Text | Reasoning | ToolStart | ToolArguments):
            record.token(record.passed + 1)
        elif isinstance(event, Finish):
            record.usage = event.usage
        elif isinstance(event, Error):
            record.failed(event.failure)


def _message_id() -> str:
    return f"msg_{uuid.uuid4().hex}"


class _Count(msgspec.Struct):
    count: int


async def _count(it: Exchange, body: bytes) -> None:
    request = decoder.decode(body, counting=True)
    it.check_model(request.model)
    fleet = it.gateway.fleet
    model = fleet.resolve(request.model)
    for base_url in fleet.locate_tokenizer(model):
        counted = await _ask(it, base_url, request, model)
        if counted is not None:
            await it.client.answer(200, msgspec.json.encode({"input_tokens": counted}))
            return
    raise NoHealthyNode(f"No node that is up has the tokenizer of {model!r}: load the model once to fetch it.")


async def _ask(it: Exchange, base_url: str, request: MessagesRequest, model: str) -> int | None:
    """The node's count; None when it has no files of the model or cannot be reached."""
    outgoing = Outgoing(model=model, path="/tokenize", body=request.tokenize_body, stream=False, silence=COUNT_SECONDS)
    try:
        async with it.asked(base_url, outgoing, model) as response:
            return msgspec.json.decode(await read(response), type=_Count).count
    except UpstreamUnreachable:
        return None
    except NeuronRefused as refused:
        if refused.status == 404:
            return None
        raise
    except msgspec.MsgspecError as error:
        raise UpstreamMalformed(f"The neuron's count cannot be read: {error}") from error
