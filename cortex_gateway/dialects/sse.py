"""Server-sent events: bytes to events and back; knows the WHATWG format and no dialect.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from msgspec import Struct

COMMENT = b":\n\n"
PROGRESS = b" progress "
"""How a comment begins that says what a client waits for: then comes a JSON object."""
MAX_EVENT_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"


class SseEvent(Struct, frozen=True):
    """One dispatched event; several data lines are joined by newlines."""

    data: bytes
    event: str | None = None


class SseError(Exception):
    """The stream holds an event larger than the cap."""


class SseParser:
    """Feed bytes as they come, split anywhere; lines end in CR, LF or CRLF. A last event without its blank line is dropped."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._cap = max_event_bytes
        self._tail: list[bytes] = []  # pieces of a line that has not ended
        self._size = 0  # bytes held in the tail
        self._data_size = 0  # and in data lines, one more for each
        self._skip_lf = False  # the last chunk ended in CR: a LF that follows belongs to it
        self._head = b""  # the first bytes, until they cannot be a byte order mark
        self._begun = False
        self._data: list[bytes] = []
        self._name: str | None = None
        self.progress = b""  # what was last told of it, as JSON

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that `chunk` completes. Raises SseError when one outgrows the cap."""
        if not self._begun:
            chunk = self._without_mark(chunk)
        if self._skip_lf and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._skip_lf = False
        if not chunk:
            return []
        self._skip_lf = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._size += len(chunk)
        events = self._lines(chunk)
        if self._size + self._data_size > self._cap:
            raise SseError(f"an event is larger than {self._cap} bytes")
        return events

    def _without_mark(self, chunk: bytes) -> bytes:
        held = self._head + chunk
        if len(held) < len(_BOM) and _BOM.startswith(held):
            self._head = held
            return b""
        self._begun = True
        self._head = b""
        return held.removeprefix(_BOM)

    def _lines(self, chunk: bytes) -> list[SseEvent]:
        first, *rest = chunk.split(b"\n")
        if not rest:
            self._tail.append(first)
            return []
        events: list[SseEvent] = []
        self._line(b"".join([*self._tail, first]), events)
        for line in rest[:-1]:
            self._line(line, events)
        self._tail = [rest[-1]]
        self._size = len(rest[-1])
        return events

    def _line(self, line: bytes, events: list[SseEvent]) -> None:
        if not line:
            if self._data:
                events.append(SseEvent(b"\n".join(self._data), self._name))
            self._data, self._name, self._data_size = [], None, 0
            return
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_size += len(value) + 1
        elif not field and value.startswith(PROGRESS):
            self.progress = value.removeprefix(PROGRESS)
        elif field == b"event":
            self._name = value.removeprefix(b" ").decode(errors="replace") or None


def encode(data: bytes, event: str | None = None) -> bytes:
    """One event. `data` has no line breaks (JSON from this program never has)."""
    assert b"\n" not in data
    assert b"\r" not in data
    name = f"event: {event}\n".encode() if event else b""
    return b"%bdata: %b\n\n" % (name, data)


def comment(said: bytes = b"") -> bytes:
    """A comment, which every parser skips: with `said`, JSON, what its reader waits for."""
    return b":%b%b\n\n" % (PROGRESS, said) if said else COMMENT
