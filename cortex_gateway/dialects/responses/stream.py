"""Neutral events as a stream of Responses events; knows their order and shapes, not when they are sent."""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from attrs import define, field

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.dialect import AnswerId, Progress
from cortex_gateway.dialects.events import (
    Error,
    Event,
    Finish,
    Reasoning,
    Start,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolEnd,
    ToolStart,
    Usage,
)
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.grammar import Grammar
from cortex_gateway.dialects.progress import progress_comment
from cortex_gateway.dialects.responses import response as shapes
from cortex_gateway.dialects.responses.request import ResponsesRequest
from cortex_gateway.dialects.responses.tools import Tool, bare_text

NO_TOOL = Tool("")
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
NO_SUMMARY = Failure(502, "api_error", "server_error", "The model gave no summary of the conversation.")


@define
class _Open:
    """The item that is under way: `tool` where it is a call."""

    kind: str
    id: str
    at: int
    call_id: str = ""
    tool: Tool = NO_TOOL
    said: list[str] = field(factory=list)
    logprobs: list[TokenLogprob] = field(factory=list)

    @property
    def text(self) -> str:
        return "".join(self.said)

    @property
    def place(self) -> dict[str, Any]:
        """Of the item, as its events tell it."""
        return {"item_id": self.id, "output_index": self.at}


class ResponseEncoder:
    """Encodes one stream. Items are numbered 0, 1, 2 …; one is done before the next is added. Every event has its number.

    Attributes:
        ended: the last event is out.
    """

    def __init__(self, request: ResponsesRequest, identity: AnswerId) -> None:
        self.ended = False
        self._request = request
        self._identity = identity
        self._head = shapes.head(request, identity)
        self._grammar = Grammar()
        self._number = 0
        self._open: _Open | None = None
        self._output: list[shapes.Item] = []
        self._summary: list[str] = []
        self._status: Status = "queued" if request.asked.background else "in_progress"
        self._error: dict[str, str] | None = None
        self._incomplete: dict[str, str] | None = None
        self._usage: Usage | None = None

    def feed(self, event: Event) -> bytes:
        """The bytes of `event`. Raises GrammarError when it cannot come now."""
        self._grammar.feed(event)
        begun = self._begin()
        match event:
            case Start():
                return begun
            case Finish():
                return begun + self._finish(event)
            case Error():
                raise AssertionError("an error is what `fail` is for")
        return begun + (self._sum_up(event) if self._request.compacting else self._piece(event))

    def keep_alive(self, waits: Progress | None) -> bytes:
        """`response.in_progress` once more, without the words of the request: only events of its own kind keep a client."""
        comment = progress_comment(waits) if waits else b""
        begun = self._begin()
        idle = {**self._response(), "instructions": None, "tools": []}
        return comment + (begun or self._event("response.in_progress", response=idle))

    def fail(self, failure: Failure) -> bytes:
        """`response.failed`, which ends the stream, wherever it stands."""
        begun = self._begin()
        self._status, self._error = "failed", shapes.error(failure)
        return begun + self._last("response.failed")

    def cancel(self) -> None:
        """It has ended because its client wants it no more."""
        self._status, self.ended = "cancelled", True

    def queued(self) -> bytes:
        """What is said before a model has it."""
        assert not self._number, "the stream has begun"
        response = self._response()
        created = self._event("response.created", response=response)
        return created + self._event("response.queued", response=response)

    def working(self) -> bytes:
        """A model has it now."""
        self._status = "in_progress"
        return self._event("response.in_progress", response=self._response()) if self._number else b""

    def whole(self) -> bytes:
        """The Response as it stands now."""
        return msgspec.json.encode(self._response())

    def _begin(self) -> bytes:
        if self._number:
            return b""
        self._status = "in_progress"
        response = self._response()
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def _piece(self, event: Event) -> bytes:
        match event:
            case Text(text, logprobs):
                return self._within("message") + self._say(text, logprobs)
            case Reasoning(text):
                return self._within("reasoning") + self._say(text)
            case ToolStart(_, call_id, function):
                tool = self._request.tools.called(function)
                kind = "custom_tool_call" if tool.custom else "function_call"
                return self._close("completed") + self._add(kind, call_id, tool)
            case ToolArguments(_, text):
                return self._say(text)
            case ToolEnd():
                return b""  # whether it is whole is known with what comes next
        raise AssertionError(event)

    def _sum_up(self, event: Event) -> bytes:
        """Of an answer that is to be a summary only its text counts."""
        if isinstance(event, Text):
            self._summary.append(event.text)
        return b""

    def _within(self, kind: str) -> bytes:
        if self._open is not None and self._open.kind == kind:
            return b""
        return self._close("completed") + self._add(kind)

    def _add(self, kind: str, call_id: str = "", tool: Tool = NO_TOOL) -> bytes:
        at = len(self._output)
        item = self._open = _Open(kind, shapes.item_id(kind, self._identity, at), at, call_id, tool)
        added = self._event("response.output_item.added", output_index=at, item=self._item(item, "in_progress"))
        if kind == "message":
            part = shapes.output_text("")
            return added + self._event("response.content_part.added", **item.place, content_index=0, part=part)
        if kind == "reasoning":
            part = {"type": "summary_text", "text": ""}
            return added + self._event(
                "response.reasoning_summary_part.added", **item.place, summary_index=0, part=part
            )
        return added

    def _say(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        item = self._open
        assert item is not None
        item.said.append(text)
        item.logprobs += logprobs
        match item.kind:
            case "message":
                fields = {**item.place, "content_index": 0, "delta": text, "logprobs": logprobs}
                return self._event("response.output_text.delta", **fields)
            case "reasoning":
                return self._event("response.reasoning_summary_text.delta", **item.place, summary_index=0, delta=text)
            case "function_call":
                return self._event("response.function_call_arguments.delta", **item.place, delta=text)
        return b""  # of a custom tool the bare text is known when its JSON is whole

    def _close(self, status: Status) -> bytes:
        item = self._open
        if item is None:
            return b""
        self._open = None
        done = self._item(item, status)
        self._output.append(done)
        return self._done(item) + self._event("response.output_item.done", output_index=item.at, item=done)

    def _done(self, item: _Open) -> bytes:
        """What tells once more all that an item's deltas told."""
        text, place = item.text, item.place
        match item.kind:
            case "message":
                at = {**place, "content_index": 0}
                said = self._event("response.output_text.done", **at, text=text, logprobs=item.logprobs)
                return said + self._event(
                    "response.content_part.done", **at, part=shapes.output_text(text, item.logprobs)
                )
            case "reasoning":
                at = {**place, "summary_index": 0}
                part = {"type": "summary_text", "text": text}
                said = self._event("response.reasoning_summary_text.done", **at, text=text)
                return said + self._event("response.reasoning_summary_part.done", **at, part=part)
            case "function_call":
                return self._event("response.function_call_arguments.done", **place, arguments=text)
        bare = bare_text(text)
        said = self._event("response.custom_tool_call_input.delta", **place, delta=bare) if bare else b""
        return said + self._event("response.custom_tool_call_input.done", **place, input=bare)

    def _item(self, item: _Open, status: Status) -> shapes.Item:
        begun = status == "in_progress"
        match item.kind:
            case "message":
                return shapes.message(item.id, [] if begun else [shapes.output_text(item.text, item.logprobs)], status)
            case "reasoning":
                return shapes.reasoning(item.id, None if begun else item.text)
        said = bare_text(item.text) if item.tool.custom else item.text
        return shapes.call(item.id, item.call_id, item.tool, "" if begun else said, status)

    def _finish(self, event: Finish) -> bytes:
        self._usage = event.usage
        if self._request.compacting:
            summary = "".join(self._summary).strip()
            if not summary:
                return self.fail(NO_SUMMARY)
            last = self._compaction(summary)
        else:
            last = self._close("incomplete" if event.reason == "length" else "completed")
        if event.reason == "length" and not self._ours_is_the_limit:
            self._status, self._incomplete = "incomplete", {"reason": "max_output_tokens"}
            return last + self._last("response.incomplete")
        self._status = "completed"
        return last + self._last("response.completed")

    @property
    def _ours_is_the_limit(self) -> bool:
        """A summary that ends at a length which nobody asked for is one."""
        return self._request.compacting and self._request.asked.top.get("max_output_tokens") is None

    def _compaction(self, summary: str) -> bytes:
        item = shapes.compaction(shapes.item_id("compaction", self._identity, 0), summary)
        self._output.append(item)
        added = self._event("response.output_item.added", output_index=0, item=item)
        return added + self._event("response.output_item.done", output_index=0, item=item)

    def _last(self, kind: str) -> bytes:
        self.ended = True
        return self._event(kind, response=self._response())

    def _response(self) -> shapes.Item:
        return {
            **self._head,
            "status": self._status,
            "error": self._error,
            "incomplete_details": self._incomplete,
            "output": self._output,
            "usage": None if self._usage is None else shapes.usage(self._usage),
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        numbered = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return sse.encode(msgspec.json.encode(numbered), kind)
