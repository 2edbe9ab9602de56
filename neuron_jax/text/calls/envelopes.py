"""Where in a text calls stand: between markers, to the end, or from the first character on; knows no notation of calls."""

from collections.abc import Callable, Sequence

from neuron_jax.text.calls.reader import LONGEST_SPACES, CallReader
from neuron_jax.text.calls.source import SPACES, Waits

Body = Callable[[CallReader], Waits[bool]]
"""Reads the calls that come next; whether there were any."""


def between(
    opens: Sequence[str], closes: Sequence[str], body: Body, *, shown: bool = False, first: Body | None = None
) -> Callable[[CallReader], Waits[None]]:
    """Calls behind any of `opens`; what closes them is no text. `shown`: where there are none behind it, what opens them is
    text. `first` may find calls at the very beginning, where nothing opens them.
    """

    def read(reader: CallReader) -> Waits[None]:
        source, called = reader.source, False
        if first is not None:
            called = yield from _at_first(reader, first)
        while True:
            last = reader.leave if called else reader.say_unless_cut
            marker = yield from source.until((*opens, *closes) if called else opens, reader.say, last)
            if marker is None:
                return
            if marker not in opens:
                called = False
                continue
            source.mark()
            reader.marker = marker
            found = yield from body(reader)
            if found:
                reader.accept()
            else:
                reader.refuse(marker if shown else "")
            called = called or found

    return read


def _at_first(reader: CallReader, body: Body) -> Waits[bool]:
    reader.source.mark()
    spaces = yield from reader.source.run(SPACES, LONGEST_SPACES)
    called = len(spaces) < LONGEST_SPACES and (yield from body(reader))
    if called:
        reader.accept()
    else:
        reader.refuse()
    return called
