"""The legal order of events is the table, no more and no less."""

import itertools

import pytest

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
    Usage,
)
from cortex_gateway.dialects.failure import malformed
from cortex_gateway.dialects.grammar import TABLE, Grammar, GrammarError, State

START, FINISH, ERROR = Start(Usage(3)), Finish("stop", None, Usage(3, 1)), Error(malformed("broken"))
CALL = (ToolStart(0, "call_0", "f"), ToolArguments(0, "{}"), ToolEnd(0))
SAMPLES: tuple[Event, ...] = (START, Text("a"), Reasoning("b"), *CALL, FINISH, ERROR)
WAYS: dict[State, tuple[Event, ...]] = {
    "before": (),
    "open": (START,),
    "tool": (START, CALL[0]),
    "ended": (START, FINISH),
}


def at(state: State) -> Grammar:
    grammar = Grammar()
    for event in WAYS[state]:
        grammar.feed(event)
    assert grammar.state == state
    return grammar


@pytest.mark.parametrize(("state", "event"), list(itertools.product(WAYS, SAMPLES)))
def test_an_event_is_legal_exactly_where_the_table_says(state: State, event: Event) -> None:
    """Every pair of a state and an event, legal or not."""
    grammar = at(state)
    following = TABLE[state].get(type(event))
    if following:
        grammar.feed(event)

        assert grammar.state == following
    else:
        with pytest.raises(GrammarError, match=type(event).__name__):
            grammar.feed(event)

        assert grammar.state == state


def test_a_whole_stream_of_everything_is_legal() -> None:
    """Thinking, text, two calls, text again."""
    grammar = Grammar()
    second = (ToolStart(1, "call_1", "g"), ToolEnd(1))
    for event in (START, Reasoning("x"), Text("y"), *CALL, *second, Reasoning("z"), Text("w"), FINISH):
        grammar.feed(event)

    assert grammar.state == "ended"


@pytest.mark.parametrize(
    "events",
    [
        (ToolStart(1, "a", "f"),),
        (*CALL, ToolStart(0, "b", "f")),
        (CALL[0], ToolArguments(1, "{}")),
        (CALL[0], ToolEnd(1)),
    ],
)
def test_calls_are_numbered_in_order(events: tuple[Event, ...]) -> None:
    """A call's pieces carry its number, and numbers have no gaps."""
    grammar = at("open")
    for event in events[:-1]:
        grammar.feed(event)

    with pytest.raises(GrammarError, match="index"):
        grammar.feed(events[-1])
