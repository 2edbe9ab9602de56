"""The legal order of events, held against a regular expression that was written apart from the table."""

import itertools
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from cortex_gateway.dialects.grammar import Grammar, OrderError, State

START, FINISH, ERROR = Start(Usage(3)), Finish("stop", None, Usage(3, 1)), Error(malformed("broken"))
CALL = (ToolStart(0, "call_0", "f"), ToolArguments(0, "{}"), ToolEnd(0))
LETTERS: dict[str, Event] = {
    "S": START,
    "T": Text("a"),
    "R": Reasoning("b"),
    "C": CALL[0],
    "A": CALL[1],
    "E": CALL[2],
    "F": FINISH,
    "X": ERROR,
}
LEGAL = re.compile(r"(X|S([TR]|CA*E)*(F|X|CA*X?)?)?")
"""Every beginning of a legal stream, calls not numbered: an error alone, or a start, then text, reasoning and whole calls,
then a finish, an error, or a call that is still open or broken off by an error."""
WAYS: dict[State, str] = {"before": "", "open": "S", "tool": "SC", "ended": "SF"}


def at(state: State) -> Grammar:
    grammar = Grammar()
    for letter in WAYS[state]:
        grammar.feed(LETTERS[letter])
    assert grammar.state == state
    return grammar


@pytest.mark.parametrize(("state", "letter"), list(itertools.product(WAYS, LETTERS)))
def test_an_event_is_legal_exactly_where_it_may_come(state: State, letter: str) -> None:
    """Every pair of a state and an event; what is refused changes nothing."""
    grammar = at(state)
    if LEGAL.fullmatch(WAYS[state] + letter):
        grammar.feed(LETTERS[letter])
    else:
        with pytest.raises(OrderError, match=type(LETTERS[letter]).__name__):
            grammar.feed(LETTERS[letter])

        assert grammar.state == state


def numbered(letters: str) -> list[Event]:
    """The events, the calls among them counted from 0 as they begin."""
    calls, events = 0, []
    for letter in letters:
        calls += letter == "C"
        event = LETTERS[letter]
        events.append(msgspec.structs.replace(event, index=max(0, calls - 1)) if letter in "CAE" else event)
    return events


@given(st.text("STRCAEFX", max_size=12))
def test_any_row_of_events_is_legal_as_far_as_the_expression_says(letters: str) -> None:
    """Fed one by one, the first refusal is where the row stops being the beginning of a legal stream."""
    grammar = Grammar()
    for at, event in enumerate(numbered(letters)):
        if not LEGAL.fullmatch(letters[: at + 1]):
            with pytest.raises(OrderError):
                grammar.feed(event)
            return
        grammar.feed(event)


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

    with pytest.raises(OrderError, match="index"):
        grammar.feed(events[-1])
