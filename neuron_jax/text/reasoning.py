"""Separates a model's thinking from its answer; knows the tags, must not know tokens or tools.

Thinking is recognised at the very start of a turn only: a tag in the middle of an answer is text about tags. The newlines
that the format puts around the thinking belong to neither side.
"""

from collections.abc import Sequence
from enum import Enum, auto

from attrs import define

from neuron_jax.text.pieces import Piece, Reasoning, Text
from neuron_jax.text.stop import StopMatcher

OPEN, CLOSE = "<think>", "</think>"


class _State(Enum):
    START = auto()
    THINKING = auto()
    AFTER = auto()
    ANSWER = auto()


class ReasoningParser:
    """`opened`: the prompt ended with the open tag. `until` are strings that end the thinking too, and stay in the text."""

    def __init__(self, *, opened: bool, until: Sequence[str] = ()) -> None:
        self._state = _State.THINKING if opened else _State.START
        self._start = ""
        self._end = StopMatcher((CLOSE, *until))
        self._thought = _Trimmer()

    @property
    def thinking(self) -> bool:
        """Whether the next token belongs to the thinking."""
        return self._state is _State.THINKING

    def feed(self, text: str) -> list[Piece]:
        """What is decided by now about everything fed."""
        match self._state:
            case _State.START:
                return self._begin(text)
            case _State.THINKING:
                return self._think(text)
            case _State.AFTER:
                return self._after(text)
            case _State.ANSWER:
                return _text(text)

    def close(self) -> list[Piece]:
        """What was held back. Thinking that was never closed stays thinking."""
        match self._state:
            case _State.START:
                return _text(self._start)
            case _State.THINKING:
                return _reasoning(self._thought.feed(self._end.close()) + self._thought.held)
            case _:
                return []

    def _begin(self, text: str) -> list[Piece]:
        self._start += text
        word = self._start.lstrip()
        if word.startswith(OPEN):
            self._state = _State.THINKING
            return self._think(word.removeprefix(OPEN))
        if OPEN.startswith(word):
            return []
        self._state = _State.ANSWER
        return _text(self._start)

    def _think(self, text: str) -> list[Piece]:
        matched = self._end.feed(text)
        pieces = _reasoning(self._thought.feed(matched.text))
        if matched.stop is None:
            return pieces
        self._state = _State.AFTER
        kept = "" if matched.stop == CLOSE else matched.stop
        return pieces + self._after(kept + matched.rest)

    def _after(self, text: str) -> list[Piece]:
        answer = text.lstrip()
        if answer:
            self._state = _State.ANSWER
        return _text(answer)


@define
class _Trimmer:
    """Takes the white space off both ends of a text that comes in chunks."""

    held: str = ""
    _begun: bool = False

    def feed(self, text: str) -> str:
        whole = self.held + (text if self._begun else text.lstrip())
        shown = whole.rstrip()
        self._begun = self._begun or bool(shown)
        self.held = whole[len(shown) :]
        return shown


def _text(text: str) -> list[Piece]:
    return [Text(text)] if text else []


def _reasoning(text: str) -> list[Piece]:
    return [Reasoning(text)] if text else []
