"""Runs an incremental parser every way a stream can be cut; knows only feed and close."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from hypothesis import strategies as st

from neuron_jax.text.pieces import Piece, merged


class Parser(Protocol):
    """What the parsers of the text layer have in common."""

    def feed(self, text: str) -> list[Piece]: ...

    def close(self) -> list[Piece]: ...


def collect(parser: Parser, chunks: Iterable[str]) -> tuple[Piece, ...]:
    """Everything `parser` says, neighbours joined."""
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
    return merged([*pieces, *parser.close()])


def check(make: Callable[[], Parser], text: str, *expected: Piece) -> None:
    """`text` whole, in characters, in pairs, and with empty chunks in between gives `expected`."""
    assert collect(make(), [text]) == expected
    assert collect(make(), text) == expected
    assert collect(make(), [text[at : at + 2] for at in range(0, len(text), 2)]) == expected
    assert collect(make(), [part for char in text for part in ("", char)]) == expected


def cuts(data: Any) -> list[list[Any]]:
    """`data` whole, element by element, and split once at every place."""
    whole = [[data], [data[at : at + 1] for at in range(len(data))]]
    return whole + [[data[:at], data[at:]] for at in range(1, len(data))]


@st.composite
def pieces_of(draw: st.DrawFn, data: Any) -> list[Any]:
    """`data` cut at any places, also several times at one."""
    places = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[at:end] for at, end in zip([0, *places], [*places, len(data)], strict=True)]
