"""The few sizes of calls that programs are compiled for, and how texts fill one; pure arithmetic on lengths."""

from collections.abc import Iterable, Sequence

from attrs import frozen

WIDTHS = (32, 128, 512, 2048, 8192, 32768)
"""Tokens of a row. Each size has about four times the tokens of the next smaller one."""

PLACES_PER_TEXT = 8
"""A call has room for one text in so many of its places: shorter ones, which are few, are left to the next call."""


@frozen(order=True)
class CallSize:
    """`rows` of `width` places."""

    rows: int
    width: int

    @property
    def places(self) -> int:
        """All of them."""
        return self.rows * self.width

    @property
    def texts(self) -> int:
        """The most texts of one call."""
        return max(self.rows, self.places // PLACES_PER_TEXT)


def declare(longest: int, step_tokens: int) -> tuple[CallSize, ...]:
    """The sizes for texts of up to `longest` tokens, and about `step_tokens` in a call; the smallest first.

    Of each width there is one row, for whoever asks alone, and as many as a call has tokens, for whoever asks for much;
    of the narrowest one only the former: short texts stand behind each other in wider rows as well.
    """
    assert longest > 0, f"texts of up to {longest} tokens"
    widths = [*(width for width in WIDTHS if width < longest), longest]
    many = [CallSize(step_tokens // width, width) for width in widths[1:] or widths if step_tokens // width > 1]
    return tuple(sorted({*(CallSize(1, width) for width in widths), *many}, key=lambda size: (size.places, size.width)))


def choose(sizes: Sequence[CallSize], lengths: Sequence[int]) -> tuple[CallSize, list[list[int]]]:
    """The size for a call, and its rows: places in `lengths`, which are tokens of texts in the order in which they want
    to be computed. The first is in any case; where all of them fit a size the smallest such is taken, else the one
    that takes most of them beside the first.
    """
    able = [size for size in sizes if size.width >= lengths[0]]
    total, longest = sum(lengths), max(lengths)
    for size in able:
        if total <= size.places and longest <= size.width:
            rows = fill(size, lengths)
            if sum(map(len, rows)) == len(lengths):
                return size, rows
    # Several rows, and as narrow as can be: attention over a wide row of short texts is mostly for nothing.
    size = min((size for size in able if size.rows > 1), default=able[0], key=lambda size: size.width)
    return size, fill(size, lengths)


def fill(size: CallSize, lengths: Iterable[int]) -> list[list[int]]:
    """Each text in the first row that has room for it, those that find none left out."""
    rows: list[list[int]] = [[] for _ in range(size.rows)]
    room = [size.width] * size.rows
    left = size.texts
    for place, length in enumerate(lengths):
        row = next((row for row in range(size.rows) if length <= room[row]), None)
        if row is None:
            continue
        rows[row].append(place)
        room[row] -= length
        left -= 1
        if not left:
            break
    return rows
