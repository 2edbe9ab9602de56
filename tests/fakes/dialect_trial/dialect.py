"""A made-up dialect, to try what one costs: lines of JSON with a number each, its own errors, one folder. Knows no route."""

from typing import Any

import msgspec

from cortex_gateway.dialects.chat import decode_non_streaming
from cortex_gateway.dialects.dialect import (
    AnswerId,
    Count,
    Decoded,
    Dialect,
    Generation,
    NonStreamingAnswer,
    Progress,
    ToCount,
)
from cortex_gateway.dialects.events import Error, Event, Finish, Text, Usage
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.dialects.translation import Translation


class Numbered:
    """`dialect.Encoder`: every line has the number of the one before it and one, a keep-alive's included."""

    def __init__(self, identity: AnswerId) -> None:
        self._id = f"say_{identity.unique}"
        self._number = 0

    def feed(self, event: Event) -> bytes:
        match event:
            case Text(text):
                return self._line(said=text)
            case Finish():
                return self._line(over=event.reason, tokens=event.usage.completion)
        return b""

    def keep_alive(self, waits: Progress | None) -> bytes:
        return self._line(still=waits.phase if waits else "thinking")

    def fail(self, failure: Failure) -> bytes:
        return self._line(oops=failure.message)

    def _line(self, **fields: Any) -> bytes:
        self._number += 1
        return msgspec.json.encode({"id": self._id, "number": self._number, **fields}) + b"\n"


def _fields(body: bytes) -> tuple[str, bool, str]:
    """The model, whether to stream, and the prompt."""
    try:
        asked = msgspec.json.decode(body)
        return asked["who"], bool(asked.get("live")), asked["prompt"]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(Failure(400, "invalid_request_error", None, f"Say `who` and `prompt`: {error}")) from error


def _decode(body: bytes) -> Decoded:
    model, stream, prompt = _fields(body)
    streaming = {"stream": True} if stream else {}
    messages = [{"role": "user", "content": prompt}]
    return Decoded(
        model=model,
        stream=stream,
        body=lambda name: msgspec.json.encode({"model": name, "messages": messages, **streaming}),
        answer=lambda identity: Translation(Numbered(identity)),
        non_streaming=_non_streaming,
    )


def _non_streaming(raw: bytes, identity: AnswerId) -> NonStreamingAnswer:
    usage: Usage | None = None
    text = ""
    for event in decode_non_streaming(raw):
        match event:
            case Error(failure):
                return NonStreamingAnswer(failure)
            case Text(piece):
                text += piece
            case Finish():
                usage = event.usage
    return NonStreamingAnswer(msgspec.json.encode({"id": f"say_{identity.unique}", "said": text}), usage)


def _to_count(body: bytes) -> ToCount:
    model, _, prompt = _fields(body)
    return ToCount(model, lambda name: msgspec.json.encode({"model": name, "prompt": prompt}))


SAY = Dialect(
    prefixes=("/say",),
    error=lambda failure, identity: msgspec.json.encode({"oops": failure.message, "request": identity}),
    routes=(
        Generation("/say", "/v1/chat/completions", "say", _decode),
        Count("/say/long", _to_count, lambda count: msgspec.json.encode({"long": count})),
    ),
    stream_type="application/x-ndjson",
)
