"""Anthropic's Messages over a neuron's chat: the dialect's record, and nothing of its fields."""

import msgspec

from cortex_gateway.dialects.anthropic import errors, request
from cortex_gateway.dialects.anthropic.request import MessagesRequest
from cortex_gateway.dialects.anthropic.response import whole
from cortex_gateway.dialects.anthropic.stream import MessageEncoder
from cortex_gateway.dialects.chat import decode_whole
from cortex_gateway.dialects.dialect import AnswerId, Count, Decoded, Dialect, Generation, ToCount, Whole
from cortex_gateway.dialects.events import Finish
from cortex_gateway.dialects.translation import Translation


def _decode(body: bytes) -> Decoded:
    asked = request.decode(body)
    return Decoded(
        model=asked.model,
        stream=asked.stream,
        body=asked.neuron_body,
        answer=lambda identity: Translation(_encoder(asked, identity)),
        whole=lambda raw, identity: _whole(asked, raw, identity),
    )


def _encoder(asked: MessagesRequest, identity: AnswerId) -> MessageEncoder:
    return MessageEncoder(message_id=_message_id(identity), model=asked.model, request_id=identity.request)


def _whole(asked: MessagesRequest, raw: bytes, identity: AnswerId) -> Whole:
    events = decode_whole(raw)
    last = events[-1]
    usage = last.usage if isinstance(last, Finish) else None
    return Whole(whole(events, message_id=_message_id(identity), model=asked.model), usage)


def _message_id(identity: AnswerId) -> str:
    return f"msg_{identity.unique}"


def _to_count(body: bytes) -> ToCount:
    asked = request.decode(body, counting=True)
    return ToCount(asked.model, asked.tokenize_body)


ANTHROPIC = Dialect(
    name="Anthropic",
    prefixes=("/v1/messages",),
    error=errors.body,
    routes=(
        Generation("/v1/messages", "/v1/chat/completions", "messages", _decode),
        Count("/v1/messages/count_tokens", _to_count, lambda count: msgspec.json.encode({"input_tokens": count})),
    ),
)
