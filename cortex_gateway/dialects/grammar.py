"""The legal order of neutral events, as one table; knows nothing else."""

from typing import Literal

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

State = Literal["before", "open", "tool", "ended"]

TABLE: dict[State, dict[type[Event], State]] = {
    "before": {Start: "open", Error: "ended"},
    "open": {Text: "open", Reasoning: "open", ToolStart: "tool", Finish: "ended", Error: "ended"},
    "tool": {ToolArguments: "tool", ToolEnd: "open", Error: "ended"},
    "ended": {},
}


class OrderError(Exception):
    """An event came where the table has no place for it."""


class Grammar:
    """Follows one stream. `feed` raises OrderError at the first event out of order, and stays where it was."""

    def __init__(self) -> None:
        self.state: State = "before"
        self._calls = 0

    def feed(self, event: Event) -> None:
        """Take the next event. Tool calls are numbered 0, 1, 2 … and their pieces carry the open call's number."""
        following = TABLE[self.state].get(type(event))
        if following is None:
            raise OrderError(f"{type(event).__name__} cannot come when the stream is {self.state!r}")
        if isinstance(event, ToolStart | ToolArguments | ToolEnd):
            self._number(event)
        self.state = following

    def _number(self, event: ToolStart | ToolArguments | ToolEnd) -> None:
        expected = self._calls - (not isinstance(event, ToolStart))
        if event.index != expected:
            raise OrderError(f"{type(event).__name__} has index {event.index}, not {expected}")
        self._calls = expected + 1
