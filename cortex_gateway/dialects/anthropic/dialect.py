"""Anthropic's Messages over a neuron's chat: the dialect's record, and nothing of its fields."""

from functools import partial

import msgspec

from cortex_gateway.dialects.anthropic import errors, request
from cortex_gateway.dialects.anthropic.request import MessagesRequest
from cortex_gateway.dialects.anthropic.response import non_streaming_message
from cortex_gateway.dialects.anthropic.stream import MessageEncoder
from cortex_gateway.dialects.chat import decode_non_streaming
from cortex_gateway.dialects.dialect import (
    AnswerId,
    Count,
    Decoded,
    Dialect,
    Fixed,
    Generation,
    NonStreamingAnswer,
    ToCount,
)
from cortex_gateway.dialects.events import Finish
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.translation import Translation

NO_BATCHES = Failure(
    404,
    "invalid_request_error",
    "unsupported_route",
    "Batches are not supported here: send the messages one by one, as many at once as there is room for.",
)


def _decode(body: bytes, *, verbatim: bool) -> Decoded:
    asked = request.decode(body, verbatim=verbatim)
    return Decoded(
        model=asked.model,
        stream=asked.stream,
        body=asked.neuron_body,
        answer=lambda identity: Translation(_encoder(asked, identity)),
        non_streaming=lambda raw, identity: _non_streaming(asked, raw, identity),
        dropped=asked.dropped,
    )


def _encoder(asked: MessagesRequest, identity: AnswerId) -> MessageEncoder:
    return MessageEncoder(
        message_id=_message_id(identity),
        model=asked.model,
        request_id=identity.request,
        omits_thinking=asked.omits_thinking,
    )


def _non_streaming(asked: MessagesRequest, raw: bytes, identity: AnswerId) -> NonStreamingAnswer:
    events = decode_non_streaming(raw)
    last = events[-1]
    usage = last.usage if isinstance(last, Finish) else None
    message = non_streaming_message(
        events, message_id=_message_id(identity), model=asked.model, omits_thinking=asked.omits_thinking
    )
    return NonStreamingAnswer(message, usage)


def _message_id(identity: AnswerId) -> str:
    return f"msg_{identity.unique}"


def _to_count(body: bytes, *, verbatim: bool) -> ToCount:
    asked = request.decode(body, counting=True, verbatim=verbatim)
    return ToCount(asked.model, asked.tokenize_body)


def _dialect(*, verbatim: bool) -> Dialect:
    decode, to_count = partial(_decode, verbatim=verbatim), partial(_to_count, verbatim=verbatim)
    return Dialect(
        prefixes=("/v1/messages",),
        error=errors.body,
        routes=(
            Generation("/v1/messages", "/v1/chat/completions", "messages", decode),
            Fixed("POST", "/v1/messages/batches", NO_BATCHES),
            Fixed("GET", "/v1/messages/batches", NO_BATCHES),
            Count("/v1/messages/count_tokens", to_count, lambda count: msgspec.json.encode({"input_tokens": count})),
        ),
    )


ANTHROPIC = _dialect(verbatim=False)
VERBATIM = _dialect(verbatim=True)
"""The same that leaves in what changes with every request of Claude Code's."""
