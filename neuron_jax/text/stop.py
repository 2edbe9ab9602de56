"""Finds stop strings in text that arrives in chunks; knows no tokens.

The match that is complete first wins, whatever the chunks: it is where the model would have been stopped had every
character come alone. Of matches complete at the same character the longest wins, so no part of it is shown.
"""

from collections.abc import Iterable, Sequence

from attrs import frozen


@frozen
class Matched:
    """Text that can be shown, the string that matched, and what followed it in the same chunk (never to be shown)."""

    text: str
    stop: str | None = None
    rest: str = ""


class StopMatcher:
    """Holds back the end of the text for as long as it may be the start of a stop string.

    Knuth-Morris-Pratt, one state per string: constant time per character and string, however long the strings are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string matches everywhere"
        self._stops = tuple(sorted(dict.fromkeys(stops), key=len, reverse=True))
        self._borders = tuple(_borders(stop) for stop in self._stops)
        self._states = [0] * len(self._stops)
        self._held = ""

    def feed(self, text: str, *, armed: bool = True) -> Matched:
        """Text that no stop string can reach any more. After a match nothing may be fed.

        A string that is complete within `text` while not `armed` is text like any other; it may begin there.
        """
        buffer = self._held + text
        if not self._stops:
            return Matched(buffer)
        for at, char in enumerate(text, start=len(self._held) + 1):
            stop = self._advance(char)
            if stop is not None and armed:
                self._held = ""
                return Matched(buffer[: at - len(stop)], stop, buffer[at:])
        keep = len(buffer) - max(self._states)
        self._held = buffer[keep:]
        return Matched(buffer[:keep])

    def close(self) -> str:
        """The text held back, at the end of the stream."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> str | None:
        """Every state over one character; the longest string that is now complete."""
        found = None
        for which, stop in enumerate(self._stops):
            state = _step(stop, self._borders[which], self._states[which], char)
            if state == len(stop):
                state = self._borders[which][-1]  # in case this match is passed over: what of it may begin the next
                found = found or stop
            self._states[which] = state
        return found


def _step(stop: str, borders: Sequence[int], state: int, char: str) -> int:
    """How many characters of `stop` the text ends with once `char` has come."""
    while state and stop[state] != char:
        state = borders[state - 1]
    return state + (stop[state] == char)


def _borders(stop: Iterable[str]) -> tuple[int, ...]:
    """For every prefix of `stop`: the length of its longest proper prefix that is also its suffix."""
    chars = tuple(stop)
    borders = [0] * len(chars)
    for at in range(1, len(chars)):
        length = borders[at - 1]
        while length and chars[length] != chars[at]:
            length = borders[length - 1]
        borders[at] = length + (chars[length] == chars[at])
    return tuple(borders)
