"""Text that comes in chunks, read as if all of it were there; knows no formats.

A reader is a generator that yields where it cannot go on before more has come. So it is written as if it had the whole text,
and where the chunks end decides nothing.
"""

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from neuron_jax.text.stop import StopMatcher

T = TypeVar("T")
Waits = Generator[None, None, T]

SPACES = re.compile(r"\s*")


class Source:
    """`closed`: no more text comes, and nothing waits any longer. `starved`: something more could have come where it ended."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self.closed = False
        self.starved = False

    def add(self, text: str) -> None:
        """More text. What was read before is forgotten, but for what is marked."""
        start = self._at if self._mark is None else self._mark
        self._text = self._text[start:] + text
        self._at -= start
        self._mark = None if self._mark is None else 0

    def mark(self) -> None:
        """Keep what is read from here on."""
        self._mark = self._at

    def marked(self) -> str:
        """What was read since the mark, which is taken away."""
        assert self._mark is not None
        text, self._mark = self._text[self._mark : self._at], None
        return text

    def drop(self) -> None:
        """Nothing of what is left is wanted."""
        self._at = len(self._text)

    def release(self) -> None:
        """Take the mark away."""
        self._mark = None

    def peek(self) -> Waits[str]:
        """The next character, "" at the end."""
        while self._at == len(self._text):
            if self.closed:
                self.starved = True
                return ""
            yield
        return self._text[self._at]

    def starts(self, word: str) -> Waits[bool]:
        """Whether `word` comes next."""
        while len(rest := self._text[self._at : self._at + len(word)]) < len(word):
            if not word.startswith(rest):
                return False
            if self.closed:
                self.starved = True
                return False
            yield
        return rest == word

    def taken(self, word: str) -> Waits[bool]:
        """As `starts`, and then it is read."""
        found = yield from self.starts(word)
        if found:
            self._at += len(word)
        return found

    def some(self, pattern: re.Pattern[str]) -> Waits[str]:
        """As much of a run of characters that `pattern` matches as has come: at least one, or "" where the next is another."""
        yield from self.peek()
        found = pattern.match(self._text, self._at)
        assert found is not None, "a pattern of a run matches nothing, too"
        self._at = found.end()
        return found[0]

    def run(self, pattern: re.Pattern[str], most: int | None = None) -> Waits[str]:
        """The whole run of characters that `pattern` matches, or its first `most`."""
        parts, left = "", most
        while left != 0 and (part := (yield from self.some(pattern))):
            if left is not None and len(part) > left:
                self._at -= len(part) - left
                part = part[:left]
            parts += part
            left = None if left is None else left - len(part)
        return parts

    def until(
        self, words: Sequence[str], show: Callable[[str], None], last: Callable[[str], None] | None = None
    ) -> Waits[str | None]:
        """Reads up to the first of `words` and past it, and shows what comes before; None where none comes: the beginning of
        a word that the text ends with is shown by `last`.
        """
        matcher = StopMatcher(words)
        while True:
            yield from self.peek()
            chunk, self._at = self._text[self._at :], len(self._text)
            if not chunk:
                (last or show)(matcher.close())
                return None
            matched = matcher.feed(chunk)
            show(matched.text)
            if matched.stop is not None:
                self._at -= len(matched.rest)
                return matched.stop

    def now(self, reading: Waits[T]) -> T:
        """What `reading` comes to, once the text is closed."""
        assert self.closed, "there may be more text"
        while True:
            try:
                next(reading)
            except StopIteration as ended:
                result: T = ended.value
                return result
