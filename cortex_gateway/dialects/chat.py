"""A neuron's chat or text completion, streamed or not, as neutral events; knows OpenAI's chunks and no other dialect."""

from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from cortex_gateway.dialects.dialect import Progress
from cortex_gateway.dialects.events import (
    Error,
    Event,
    Finish,
    FinishReason,
    Reasoning,
    Start,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolEnd,
    ToolStart,
    Usage,
)
from cortex_gateway.dialects.failure import Failure, malformed
from cortex_gateway.dialects.grammar import Grammar, OrderError
from cortex_gateway.dialects.openai import errors
from cortex_gateway.dialects.sse import SseError, SseParser

CUT_SHORT = Failure(
    502, "api_error", "upstream_read_failed", "The neuron's stream ended before its end: the answer is incomplete."
)


class PromptDetails(Struct):
    cached_tokens: int | None = None


class CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class ChatUsage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: CompletionDetails | None = None

    def neutral(self) -> Usage:
        """The same counts under neutral names."""
        prompt, completion = self.prompt_tokens_details, self.completion_tokens_details
        cached = (prompt and prompt.cached_tokens) or 0
        return Usage(
            self.prompt_tokens, self.completion_tokens, cached, (completion and completion.reasoning_tokens) or 0
        )


class Function(Struct):
    name: str | None = None
    arguments: str | None = None


class ToolCall(Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None


class Delta(Struct):
    """A stream's delta, or a non-streaming answer's message: the same fields. Content comes under two names for reasoning."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class Logprobs(Struct):
    """Of a chat; a text completion has another form, of which nothing is read."""

    content: tuple[TokenLogprob, ...] | None = None


class Choice(Struct):
    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None  # of a text completion, streamed or not
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Chunk(Struct):
    choices: list[Choice] = []
    usage: ChatUsage | None = None
    error: Any = None


class Failed(Exception):  # noqa: N818 -- ends a decoder's work, never leaves this module
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


_CHUNK = msgspec.json.Decoder(Chunk)


class ChatDecoder:
    """Feed a stream's bytes; events come out in the order that the grammar allows, an Error last when it went wrong.

    Of several choices only the first is read. After Finish or Error everything that follows is ignored.
    """

    def __init__(self) -> None:
        self._sse = SseParser()
        self._grammar = Grammar()
        self._usage = Usage()
        self._calls = 0
        self._open_call: int | None = None
        self._reason: str | None = None
        self._stop: str | None = None

    @property
    def usage(self) -> Usage | None:
        """The counts as last told; None where nothing was told yet."""
        return self._usage if self._usage.prompt else None

    @property
    def waits(self) -> Progress | None:
        """What the neuron said last that its client waits for."""
        try:
            return msgspec.json.decode(self._sse.progress, type=Progress) if self._sse.progress else None
        except ValueError:
            return None

    @property
    def ended(self) -> bool:
        """Finish or Error is out."""
        return self._grammar.state == "ended"

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes."""
        events: list[Event] = []
        try:
            for event in self._sse.feed(chunk):
                if self.ended:
                    break
                self._event(event.data, events)
        except (SseError, OrderError) as error:
            self._fail(malformed(str(error)), events)
        except Failed as failed:
            self._fail(failed.failure, events)
        return events

    def close(self) -> list[Event]:
        """End of the bytes: an Error when the stream had not said `[DONE]`."""
        events: list[Event] = []
        if not self.ended:
            self._fail(CUT_SHORT, events)
        return events

    def _event(self, data: bytes, events: list[Event]) -> None:
        if data == b"[DONE]":
            self._done(events)
            return
        chunk = _decode(_CHUNK, data)
        if chunk.error is not None:
            raise Failed(_reported(chunk.error))
        if chunk.usage is not None:
            self._usage = chunk.usage.neutral()
        for choice in chunk.choices:
            if choice.index == 0:
                self._choice(choice, events)

    def _choice(self, choice: Choice, events: list[Event]) -> None:
        self._delta(choice.delta or Delta(choice.text), _rows(choice), events)
        if choice.finish_reason is not None:
            self._reason = choice.finish_reason
        if isinstance(choice.stop_reason, str):
            self._stop = choice.stop_reason

    def _delta(self, delta: Delta, logprobs: tuple[TokenLogprob, ...], events: list[Event]) -> None:
        thought = delta.reasoning_content or delta.reasoning
        if thought:
            self._end_call(events)
            self._emit(Reasoning(thought), events)
        if delta.content:
            self._end_call(events)
            self._emit(Text(delta.content, logprobs), events)
        for call in delta.tool_calls or ():
            self._call(call, events)

    def _call(self, call: ToolCall, events: list[Event]) -> None:
        function = call.function or Function()
        if call.index == self._calls:
            self._end_call(events)
            if not (call.id and function.name):
                raise Failed(malformed(f"tool call {call.index} begins without an id or a name"))
            self._emit(ToolStart(call.index, call.id, function.name), events)
            self._open_call = call.index
            self._calls += 1
        if function.arguments:
            self._emit(ToolArguments(call.index, function.arguments), events)

    def _end_call(self, events: list[Event]) -> None:
        if self._open_call is not None:
            self._emit(ToolEnd(self._open_call), events)
            self._open_call = None

    def _done(self, events: list[Event]) -> None:
        if self._reason is None:
            raise Failed(malformed("the stream said [DONE] without a finish_reason"))
        self._end_call(events)
        self._emit(Finish(finish_reason(self._reason, called=self._calls > 0), self._stop, self._usage), events)

    def _fail(self, failure: Failure, events: list[Event]) -> None:
        self._emit(Error(failure), events)

    def _emit(self, event: Event, events: list[Event]) -> None:
        if self._grammar.state == "before" and not isinstance(event, Start | Error):
            # Not with the role chunk: what of the prompt was cached is known once it has been computed.
            self._emit(Start(Usage(self._usage.prompt, 0, self._usage.cached)), events)
        self._grammar.feed(event)
        events.append(event)


def finish_reason(reason: str, *, called: bool) -> FinishReason:
    """Cut short beats everything; `tool_calls` exactly when there was a call, whatever the neuron said."""
    if reason == "length":
        return "length"
    return "tool_calls" if called else "stop"


def decode_non_streaming(raw: bytes) -> list[Event]:
    """A non-streamed answer as the events of its stream; one Error when it is none."""
    try:
        return _non_streaming(_decode(_CHUNK, raw))
    except Failed as failed:
        return [Error(failed.failure)]


def _non_streaming(answer: Chunk) -> list[Event]:
    choice = answer.choices[0] if answer.choices else None
    message = None if choice is None else choice.message or _text_message(choice)
    if choice is None or message is None or choice.finish_reason is None:
        raise Failed(malformed("the neuron's answer has no message or no finish_reason"))
    usage = (answer.usage or ChatUsage()).neutral()
    events: list[Event] = [Start(usage)]
    thought = message.reasoning_content or message.reasoning
    if thought:
        events.append(Reasoning(thought))
    if message.content:
        events.append(Text(message.content, _of_text(message.content, _rows(choice))))
    for index, call in enumerate(message.tool_calls or ()):
        events.extend(_complete_call(index, call))
    stop = choice.stop_reason if isinstance(choice.stop_reason, str) else None
    events.append(Finish(finish_reason(choice.finish_reason, called=bool(message.tool_calls)), stop, usage))
    return events


def _rows(choice: Choice) -> tuple[TokenLogprob, ...]:
    return () if choice.logprobs is None else choice.logprobs.content or ()


def _of_text(text: str, rows: tuple[TokenLogprob, ...]) -> tuple[TokenLogprob, ...]:
    """Those of `rows` that `text` is made of. A neuron tells all tokens of an answer: thoughts, markers, a stop string."""
    said = b"".join(bytes(row.bytes or ()) for row in rows)
    begins = said.rfind(text.encode())
    if begins < 0:
        return rows
    at, found = 0, []
    for row in rows:
        behind = at + len(row.bytes or ())
        if at < begins + len(text.encode()) and behind > begins:
            found.append(row)
        at = behind
    return tuple(found)


def _text_message(choice: Choice) -> Delta | None:
    """A text completion has no message, but the text of one."""
    return None if choice.text is None else Delta(choice.text)


def _complete_call(index: int, call: ToolCall) -> list[Event]:
    function = call.function or Function()
    if not (call.id and function.name):
        raise Failed(malformed(f"tool call {index} has no id or no name"))
    start = ToolStart(index, call.id, function.name)
    arguments = [ToolArguments(index, function.arguments)] if function.arguments else []
    return [start, *arguments, ToolEnd(index)]


def _reported(error: object) -> Failure:
    """The neuron's own mid-stream error; the status it would have had is told by its type."""
    failure = errors.of_envelope(500, error)
    if failure is None:
        return malformed("the neuron's stream failed without saying how")
    status: Literal[400, 500, 503] = 500
    if failure.type == "rate_limit_error" or failure.code in ("service_unavailable", "shutting_down"):
        status = 503
    elif failure.type == "invalid_request_error":
        status = 400
    return Failure(status, failure.type, failure.code, failure.message, failure.param, extras=failure.extras)


_T = TypeVar("_T")


def _decode(decoder: "msgspec.json.Decoder[_T]", data: bytes) -> _T:
    try:
        return decoder.decode(data)
    except (ValueError, RecursionError) as error:
        raise Failed(malformed(f"the neuron sent JSON that is not a chat answer: {error}")) from error
