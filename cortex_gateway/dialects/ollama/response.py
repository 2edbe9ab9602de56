"""What an answer of Ollama's is made of: its objects, its tool calls, its counts and durations. Knows no bytes of a stream.

Source: ollama/ollama api/types.go (ChatResponse, GenerateResponse, Metrics), docs/api/usage.mdx.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from cortex_gateway.dialects.dialect import AnswerId, Timing
from cortex_gateway.dialects.events import (
    Error,
    Event,
    Finish,
    Reasoning,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolEnd,
    ToolStart,
    Usage,
)
from cortex_gateway.dialects.failure import Failure

Object = dict[str, Any]


class Said(Protocol):
    """How a route words what a model says."""

    def __call__(self, text: str = "", thinking: str = "", calls: Sequence[Object] = ()) -> Object: ...


def chat_said(text: str = "", thinking: str = "", calls: Sequence[Object] = ()) -> Object:
    """As /api/chat does."""
    return {"message": {"role": "assistant", "content": text, **_more(thinking, calls)}}


def generate_said(text: str = "", thinking: str = "", calls: Sequence[Object] = ()) -> Object:
    """As /api/generate does."""
    return {"response": text, **_more(thinking, calls)}


def _more(thinking: str, calls: Sequence[Object]) -> Object:
    return {**({"thinking": thinking} if thinking else {}), **({"tool_calls": list(calls)} if calls else {})}


def told(logprobs: Sequence[TokenLogprob]) -> Object:
    """Beside what is said, where they were asked for."""
    return {"logprobs": logprobs} if logprobs else {}


def head(model: str, identity: AnswerId) -> Object:
    """What every object begins with; `model` is what the client said."""
    moment = dt.datetime.fromtimestamp(identity.created + identity.timing().elapsed, dt.UTC)
    return {"model": model, "created_at": moment.isoformat(timespec="microseconds").replace("+00:00", "Z")}


def ending(finish: Finish, timing: Timing, first: float | None) -> Object:
    """The last object's own fields. `first`: when the first token came, in seconds since the request did; None: not known."""
    reason = "length" if finish.reason == "length" else "stop"
    return {"done": True, "done_reason": reason, **_metrics(finish.usage, timing, first)}


def _metrics(usage: Usage, timing: Timing, first: float | None) -> Object:
    """Durations are nanoseconds. Where `first` is not known the prompt's time is in that of the answer."""
    known = {} if first is None else {"prompt_eval_duration": _ns(first - timing.waited)}
    return {
        "total_duration": _ns(timing.elapsed),
        "load_duration": _ns(timing.waited),
        "prompt_eval_count": usage.prompt,
        **known,
        "eval_count": usage.completion,
        "eval_duration": _ns(timing.elapsed - (timing.waited if first is None else first)),
    }


def _ns(seconds: float) -> int:
    """At least 1: clients divide by it."""
    return max(1, round(seconds * 1e9))


class CallReader:
    """Tool calls come in pieces and go out whole, for Ollama has their arguments as an object.

    One whose arguments are no object waits for what follows: a text that was cut off ends without it, and any other one
    has it with `{"malformed_arguments": <as written>}`, as templates get it (docs/wire.md section 3).
    """

    def __init__(self) -> None:
        self._start: ToolStart | None = None
        self._arguments: list[str] = []
        self._odd: Object | None = None

    def feed(self, event: Event) -> list[Object]:
        """The calls that are to be told now, before what `event` says itself."""
        ready = [] if self._odd is None or _cut(event) else [self._odd]
        self._odd = None
        match event:
            case ToolStart():
                self._start, self._arguments = event, []
            case ToolArguments(_, text):
                self._arguments.append(text)
            case ToolEnd():
                ready += self._whole()
        return ready

    def _whole(self) -> list[Object]:
        assert self._start is not None
        written = "".join(self._arguments)
        arguments = _object(written)
        if arguments is not None:
            return [_call(self._start, arguments)]
        self._odd = _call(self._start, {"malformed_arguments": written})
        return []


def _cut(event: Event) -> bool:
    return isinstance(event, Finish) and event.reason == "length"


def _call(start: ToolStart, arguments: Object) -> Object:
    return {"id": start.id, "function": {"index": start.index, "name": start.name, "arguments": arguments}}


def _object(text: str) -> Object | None:
    """No text is no arguments."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def non_streaming(events: Iterable[Event], said: Said, *, model: str, identity: AnswerId) -> bytes | Failure:
    """The object that the events of a non-streaming answer make, or the failure they end in."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Object] = []
    rows: list[TokenLogprob] = []
    reader = CallReader()
    for event in events:
        calls += reader.feed(event)
        match event:
            case Text(text, logprobs):
                texts.append(text)
                rows += logprobs
            case Reasoning(text):
                thoughts.append(text)
            case Error(failure):
                return failure
            case Finish():
                answer = said("".join(texts), "".join(thoughts), calls)
                return msgspec.json.encode(
                    {**head(model, identity), **answer, **told(rows), **ending(event, identity.timing(), first=None)}
                )
    raise AssertionError("a non-streaming answer ends in Finish or Error")


def loaded(said: Said, *, model: str, identity: AnswerId) -> bytes:
    """What is said when the model has been loaded and nothing was asked of it."""
    return msgspec.json.encode({**head(model, identity), **said(), "done": True, "done_reason": "load"})
