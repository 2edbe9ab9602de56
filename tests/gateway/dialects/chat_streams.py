"""Builds neuron chat streams for the codec tests, chunk by chunk as docs/wire.md section 3 has them."""

import json
from typing import Any

from cortex_gateway.dialects.chat import ChatDecoder
from cortex_gateway.dialects.events import Event
from tests.fakes.codec import cuts

DONE = b"data: [DONE]\n\n"


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached else {}
    return {"prompt_tokens": prompt, "completion_tokens": completion, **details}


def event(**fields: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(fields).encode()


def delta(counts: dict[str, Any] | None = None, **said: Any) -> bytes:
    more = {"usage": counts} if counts else {}
    return event(choices=[{"index": 0, "delta": said, "finish_reason": None}], **more)


def role(prompt: int = 5, cached: int = 0) -> bytes:
    return delta(usage(prompt, 0, cached), role="assistant", content="")


def finish(reason: str, stop: str | int | None = None) -> bytes:
    return event(choices=[{"index": 0, "delta": {}, "finish_reason": reason, "stop_reason": stop}])


def call(index: int, identity: str | None = None, name: str | None = None, arguments: str = "") -> bytes:
    head = {"id": identity, "type": "function"} if identity else {}
    return delta(tool_calls=[{"index": index, **head, "function": {"name": name, "arguments": arguments}}])


def total(prompt: int, completion: int, cached: int = 0) -> bytes:
    return event(choices=[], usage=usage(prompt, completion, cached))


def decoded(chunks: list[bytes]) -> list[Event]:
    decoder = ChatDecoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.close()


def check(stream: bytes, *expected: Event) -> None:
    """The stream gives `expected` whole, byte by byte, and split once at every place."""
    for chunks in cuts(stream):
        assert decoded(chunks) == list(expected)
