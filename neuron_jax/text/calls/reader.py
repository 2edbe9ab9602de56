"""What every reader of calls is built on: text around them, their numbers, when it is enough; knows no notation.

A call is shown as soon as it is certain that it is one: its name at once, its arguments as they are written. Before that,
whatever only looked like a call comes out as text. A call that breaks off later is closed, so that its arguments are JSON.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from attrs import define, field

from neuron_jax.text.calls.source import SPACES, Source, Waits
from neuron_jax.text.pieces import Piece, Reasoning, Text, ToolArguments, ToolEnd, ToolStart

LONGEST_SPACES = 200
"""White space that is held back, since it is left out where a call follows or came before."""


class ToolParser(Protocol):
    """Pure and incremental; any chunking of the text gives the same calls and the same text around them.

    With `only_one` the first call is the last thing that comes out; `ended` is true once it did. `close` says with `cut`
    that the text was broken off: what it had begun of a call is then no text either.
    """

    @property
    def ended(self) -> bool: ...

    @property
    def thinking(self) -> bool: ...

    def feed(self, text: str) -> list[Piece]: ...

    def close(self, *, cut: bool = False) -> list[Piece]: ...


class _Enough(Exception):  # noqa: N818  # no error: the only call that is wanted is there
    pass


@define(eq=False)
class CallReader:
    """`read` is the reader of one format, which calls the methods below. `functions` are those that may be called, as
    OpenAI describes them.
    """

    read: Callable[["CallReader"], Waits[None]]
    call_prefix: str
    only_one: bool
    functions: Sequence[Mapping[str, Any]]
    source: Source = field(factory=Source, init=False)
    marker: str = field(default="", init=False)  # what opened the calls that are read
    cut: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    thinking: bool = field(default=False, init=False)  # the next token belongs to no answer
    _pieces: list[Piece] = field(factory=list, init=False)
    _calls: int = field(default=0, init=False)
    _spaces: str = field(default="", init=False)
    _after_call: bool = field(default=False, init=False)
    _reading: Waits[None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._reading = self.read(self)

    def feed(self, text: str) -> list[Piece]:
        """What is certain by now."""
        if not self.ended:
            self.source.add(text)
            self._go_on()
        return self._taken()

    def close(self, *, cut: bool = False) -> list[Piece]:
        """The rest, at the end of the text."""
        self.cut = cut
        if not self.ended:
            self.source.closed = True
            self._go_on()
            self.ended = True
            self._show("" if self._after_call else self._spaces)
        return self._taken()

    def say(self, text: str) -> None:
        """Text of the answer; white space before and after calls is none."""
        if not text:
            return
        whole = self._spaces + (text.lstrip() if self._after_call else text)
        shown = whole.rstrip()
        shown = whole[: max(len(shown), len(whole) - LONGEST_SPACES)]
        self._spaces = whole[len(shown) :]
        self._after_call = self._after_call and not shown
        self._show(shown)

    def say_unless_cut(self, text: str) -> None:
        """What the text ends with may be the beginning of a marker. Where it was cut off it is, if it is more than a letter."""
        if not self.cut or len(text) == 1:
            self.say(text)

    def leave(self, text: str) -> None:
        """What is no text of the answer, nor anything else."""

    def think(self, text: str) -> None:
        """Text that is not of the answer."""
        if text:
            self._pieces.append(Reasoning(text))

    def start(self, name: str) -> None:
        """A call begins, for certain."""
        self._spaces = ""
        self._pieces.append(ToolStart(self._calls, f"{self.call_prefix}{self._calls}", name))

    def arguments(self, text: str) -> None:
        """JSON of the call's arguments."""
        if text:
            self._pieces.append(ToolArguments(self._calls, text))

    def end(self) -> None:
        """The call is complete."""
        self._pieces.append(ToolEnd(self._calls))
        self._calls += 1
        self._after_call = True
        if self.only_one:
            raise _Enough

    def call(self, name: str, arguments: str) -> None:
        """A whole call."""
        self.start(name)
        self.arguments(arguments)
        self.end()

    def accept(self) -> None:
        """What was marked are calls. Where the text was cut off in what could have been another, that is no text."""
        self.source.release()
        if self.cut and self.source.starved:
            self.source.drop()

    def refuse(self, before: str = "") -> None:
        """What was marked is no call: it is text, and so is what stands `before`, unless it was cut off before that could be
        told.
        """
        text = before + self.source.marked()
        if self.cut and self.source.starved:
            self.source.drop()
        else:
            self.say(text)

    def spaces(self) -> Waits[None]:
        """Past white space."""
        yield from self.source.run(SPACES)

    def properties(self, name: str) -> Mapping[str, Any]:
        """The schemas of the parameters of the function `name`, as far as they are known."""
        function = next((one for one in self.functions if one.get("name") == name), {})
        found = (function.get("parameters") or {}).get("properties")
        return found if isinstance(found, Mapping) else {}

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(Text(text))

    def _go_on(self) -> None:
        try:
            next(self._reading)
        except (StopIteration, _Enough):
            self.ended = True

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces
