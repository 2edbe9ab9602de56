"""The neutral stream: what a model says, whichever dialect asked; knows no wire format."""

from typing import Literal

from msgspec import Struct

from cortex_gateway.dialects.failure import Failure

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(Struct, frozen=True):
    """Token counts. `prompt` includes `cached`, the part that was not computed again; `completion` includes `reasoning`."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0


class Start(Struct, frozen=True):
    """The prompt was computed and the answer begins; `usage` counts nothing of it yet."""

    usage: Usage


class Alternative(Struct, frozen=True):
    """A token that could have come, with its natural logarithm of a probability. `bytes` where it is known."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class TokenLogprob(Alternative, frozen=True):
    """The token that came, and the likeliest in its place."""

    top_logprobs: tuple[Alternative, ...] = ()


class Text(Struct, frozen=True):
    """A piece of the answer. `logprobs`: of the tokens that ended in it or before it, where they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Reasoning(Struct, frozen=True):
    """A piece of the thinking before or between the answer."""

    text: str


class ToolStart(Struct, frozen=True):
    """A tool call begins; `index` counts calls from 0."""

    index: int
    id: str
    name: str


class ToolArguments(Struct, frozen=True):
    """A piece of the open call's arguments, as JSON text."""

    index: int
    text: str


class ToolEnd(Struct, frozen=True):
    """The open call is whole, or was cut off."""

    index: int


class Finish(Struct, frozen=True):
    """The end of a good answer. `stop`: the stop string that ended it, when one did."""

    reason: FinishReason
    stop: str | None
    usage: Usage


class Error(Struct, frozen=True):
    """The end of a bad one."""

    failure: Failure


Event = Start | Text | Reasoning | ToolStart | ToolArguments | ToolEnd | Finish | Error
