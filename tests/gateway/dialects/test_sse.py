"""Server-sent events are read the way the WHATWG describes, wherever the bytes are cut."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.sse import SseError, SseEvent, SseParser
from tests.fakes.codec import cuts, pieces_of

LINE = st.one_of(
    st.sampled_from(
        [b"", b"data", b"data:", b"data: x", b"data:  y", b"event: a", b"event:", b": beat", b"\xef\xbb\xbf"]
    ),
    st.binary(max_size=6),
)
STREAM = st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]))).map(
    lambda lines: b"".join(part for line in lines for part in line)
)


def by_the_book(stream: bytes) -> list[SseEvent]:
    """The whole stream at once, the way the standard tells it: lines, fields, dispatch at an empty line."""
    *lines, _ = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    events, data, name = [], b"", b""
    for line in lines:
        field, value = re.fullmatch(rb"(?s)([^:]*)(?:: ?(.*))?", line).groups(b"")
        if line == b"":
            if data:
                events.append(SseEvent(data[:-1], name.decode(errors="replace") or None))
            data, name = b"", b""
        elif field == b"data":
            data += value + b"\n"
        elif field == b"event":
            name = value
    return events


def parsed(chunks: list[bytes]) -> list[SseEvent]:
    parser = SseParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def check(stream: bytes, *expected: SseEvent) -> None:
    """Whole, byte by byte, and split once at every place."""
    for chunks in cuts(stream):
        assert parsed(chunks) == list(expected)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_ending_ends_a_line(end: bytes) -> None:
    """CR, LF and CRLF are the same, also when a CRLF is cut in two."""
    stream = end.join([b"event: a", b"data: 1", b"", b"data: 2", b"", b""])

    check(stream, SseEvent(b"1", "a"), SseEvent(b"2"))


def test_several_data_lines_are_one_event() -> None:
    """Data lines join with a newline, and only the first space after the colon goes."""
    check(b"data:one\ndata:  two\ndata\n\n", SseEvent(b"one\n two\n"))


def test_comments_and_unknown_fields_say_nothing() -> None:
    """Heartbeats, ids and retries make no event."""
    check(b": beat\n\n:\n\nid: 7\nretry: 1\nwhat: x\n\ndata: x\n\n", SseEvent(b"x"))


def test_an_event_name_without_data_is_dropped() -> None:
    """A name counts for its own event only."""
    check(b"event: lost\n\ndata: x\n\n", SseEvent(b"x"))


def test_trailing_bytes_are_no_event() -> None:
    """What has no blank line after it never happened."""
    check(b"data: x\n\ndata: cut", SseEvent(b"x"))
    check(b"data: x\n\ndata: cut\n", SseEvent(b"x"))


def test_a_byte_order_mark_is_skipped_once() -> None:
    """At the start of the stream and nowhere else."""
    mark = b"\xef\xbb\xbf"

    check(mark + b"data: " + mark + b"\n\n", SseEvent(mark))


def test_a_stream_may_begin_like_a_mark_and_be_none() -> None:
    """Bytes held back to look for the mark are not lost."""
    check(b"\xef\xbb: x\n\ndata: y\n\n", SseEvent(b"y"))


def test_an_event_over_the_cap_is_refused() -> None:
    """A neuron cannot fill the gateway's memory with one event, in one line or in many."""
    for chunk in (b"data: " + b"x" * 40, b"data: xxx\n" * 7, b"data:\n" * 33):
        parser = SseParser(max_event_bytes=32)
        with pytest.raises(SseError, match="32 bytes"):
            parser.feed(chunk)


@pytest.mark.parametrize("before", [b"", b"data: xxx\n\n", b"data: xxx\ndata: yyy\n\n"])
@pytest.mark.parametrize(("event", "size"), [(b"data: x", 7), (b"data: x\n", 3), (b"data:x\ndata: y\n", 5)])
def test_the_cap_is_exact(before: bytes, event: bytes, size: int) -> None:
    """A line that has not ended counts whole, a data line as what is kept of it and a byte for its end; each event anew."""
    assert len(SseParser(size).feed(before + event)) == bool(before)
    with pytest.raises(SseError, match=f"{size - 1} bytes"):
        SseParser(size - 1).feed(before + event)


def test_a_cut_line_counts_beside_the_lines_before_it() -> None:
    """What is held is one event, wherever it was cut."""
    parser = SseParser(max_event_bytes=12)
    parser.feed(b"data: xx\ndata")  # 4 and 4
    parser.feed(b": xy")

    with pytest.raises(SseError):
        parser.feed(b"z")


def test_many_small_events_stay_under_the_cap() -> None:
    """The cap is on one event, not on the stream."""
    parser = SseParser(max_event_bytes=32)

    assert len([event for _ in range(100) for event in parser.feed(b"data: xxx\n\n")]) == 100


def test_a_line_feed_belongs_to_the_carriage_return_before_it_once() -> None:
    """CR at the end of a chunk, LF in one of its own, and then another, which is an empty line."""
    assert parsed([b"data: x\r", b"\n", b"\n"]) == [SseEvent(b"x")]


@pytest.mark.parametrize("event", [SseEvent(b"{}"), SseEvent(b'{"a":1}', "ping")])
def test_what_is_encoded_is_read_back(event: SseEvent) -> None:
    """Encoder and parser agree."""
    check(sse.encode(event.data, event.event), event)


def test_line_breaks_in_data_are_our_own_bug() -> None:
    """The encoder never lets one event become two."""
    with pytest.raises(AssertionError):
        sse.encode(b"a\nb")


@given(STREAM, st.data())
def test_any_bytes_cut_anywhere_are_read_by_the_book(stream: bytes, data: st.DataObject) -> None:
    """A second, simpler reading of the standard says what must come out."""
    assert parsed(data.draw(pieces_of(stream))) == by_the_book(stream)
