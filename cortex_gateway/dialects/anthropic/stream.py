"""Neutral events as a stream of Messages events; knows their order and shapes, not when they are sent."""

from typing import Any, Literal

import msgspec

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.anthropic import errors
from cortex_gateway.dialects.anthropic.response import signature, stop_reason, usage
from cortex_gateway.dialects.dialect import Progress
from cortex_gateway.dialects.events import (
    Error,
    Event,
    Finish,
    Reasoning,
    Start,
    Text,
    ToolArguments,
    ToolEnd,
    ToolStart,
)
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.grammar import Grammar
from cortex_gateway.dialects.progress import progress_comment

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
BlockKind = Literal["text", "thinking", "tool_use"]


class MessageEncoder:
    """Encodes one stream. Blocks are numbered 0, 1, 2 …; one is closed before the next opens."""

    def __init__(self, *, message_id: str, model: str, request_id: str, omits_thinking: bool = False) -> None:
        self._omits_thinking = omits_thinking
        self._message_id = message_id
        self._model = model
        self._request_id = request_id
        self._grammar = Grammar()
        self._open: BlockKind | None = None
        self._blocks = 0
        self._thought: list[str] = []

    def feed(self, event: Event) -> bytes:
        """The bytes of `event`. Raises GrammarError when it cannot come now."""
        self._grammar.feed(event)
        match event:
            case Text(text):
                encoded = self._text(text)
            case Reasoning(text):
                encoded = self._think(text)
            case ToolArguments(_, text):
                encoded = self._delta("input_json_delta", "partial_json", text)
            case ToolStart(_, identity, name):
                block = {"type": "tool_use", "id": identity, "name": name, "input": {}}
                encoded = self._close() + self._begin("tool_use", block)
            case ToolEnd():
                encoded = self._close()
            case Start():
                encoded = self._start(event)
            case Finish():
                encoded = self._close() + self._finish(event)
            case Error():
                raise AssertionError("an error is what `fail` is for")
        return encoded

    def keep_alive(self, waits: Progress | None) -> bytes:
        """A ping, which may come anywhere, behind a comment where it is known what is waited for."""
        return progress_comment(waits) + PING if waits else PING

    def fail(self, failure: Failure) -> bytes:
        """The error that ends the stream, wherever it stands."""
        return errors.event(failure, self._request_id)

    def _start(self, event: Start) -> bytes:
        message: dict[str, Any] = {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(event.usage),
        }
        return _encode("message_start", message=message)

    def _text(self, text: str) -> bytes:
        return self._within("text", {"type": "text", "text": ""}) + self._delta("text_delta", "text", text)

    def _think(self, text: str) -> bytes:
        opened = self._within("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        self._thought.append(text)
        return opened if self._omits_thinking else opened + self._delta("thinking_delta", "thinking", text)

    def _within(self, kind: BlockKind, block: dict[str, Any]) -> bytes:
        if self._open == kind:
            return b""
        return self._close() + self._begin(kind, block)

    def _begin(self, kind: BlockKind, block: dict[str, Any]) -> bytes:
        self._open = kind
        return _encode("content_block_start", index=self._blocks, content_block=block)

    def _delta(self, kind: str, field: str, text: str) -> bytes:
        return _encode("content_block_delta", index=self._blocks, delta={"type": kind, field: text})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        signed = b""
        if self._open == "thinking":
            made = signature("".join(self._thought), omitted=self._omits_thinking)
            signed, self._thought = self._delta("signature_delta", "signature", made), []
        stop = _encode("content_block_stop", index=self._blocks)
        self._open = None
        self._blocks += 1
        return signed + stop

    def _finish(self, event: Finish) -> bytes:
        reason = stop_reason(event)
        delta = {"stop_reason": reason, "stop_sequence": event.stop if reason == "stop_sequence" else None}
        return _encode("message_delta", delta=delta, usage=usage(event.usage)) + _encode("message_stop")


def _encode(kind: str, **fields: Any) -> bytes:
    return sse.encode(msgspec.json.encode({"type": kind, **fields}), kind)
