"""How long steps take, learnt from the steps before: pure arithmetic on the seconds it is told; knows no clock.

What it says only decides how work is cut, never what comes out.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Sequence
from typing import TypeVar

from attrs import define, field

from neuron_jax.engine.buckets import DecodeKey, ExtendKey, StepKey, VerifyKey

REMEMBERED = 5
"""Times of a program of which the median counts: not the mean, because a first run, or one beside something else, takes
many times as long; and few, because the pace changes."""

SPAN = 512
"""Positions between two looks at how much dearer a chunk becomes by standing deeper in its prompt."""

GUESS = 32
"""Tokens that a step's fixed cost is taken to be worth as long as nothing was measured."""

Point = tuple[int, float]
Number = TypeVar("Number", int, float)


@define(eq=False)
class Prompts:
    """Prompt steps of one chunk size. Attention makes them dearer with every token before them: by `slope` seconds."""

    slope: float | None = field(default=None, init=False)
    _last: deque[Point] = field(factory=lambda: deque(maxlen=REMEMBERED), init=False)  # position, seconds
    _anchor: Point | None = field(default=None, init=False)

    def add(self, at: int, seconds: float) -> None:
        self._last.append((at, seconds))
        if len(self._last) < REMEMBERED:
            return
        here = _median([at for at, _ in self._last]), _median([seconds for _, seconds in self._last])
        if self._anchor is None:
            self._anchor = here
        elif abs(here[0] - self._anchor[0]) >= SPAN:
            self.slope = max((here[1] - self._anchor[1]) / (here[0] - self._anchor[0]), 0.0)
            self._anchor = here

    def seconds(self, at: int, slope: float) -> float:
        """What one beginning at position `at` usually takes, by the last ones and `slope`."""
        return _median([max(seconds + slope * (at - seen), 0.0) for seen, seconds in self._last])


@define(eq=False)
class Pace:
    """Seconds per size of a step: measured where it ran, else drawn through those that did.

    `padded`: whether a chunk costs the same however much of it is padding.
    """

    padded: bool = True
    _decode: dict[int, float] = field(factory=dict, init=False)  # rows -> seconds for one token of each
    _extend: dict[int, Prompts] = field(factory=dict, init=False)  # by chunk
    _other: dict[StepKey, float] = field(factory=dict, init=False)  # of steps that there is nothing to choose of
    _last: dict[StepKey, deque[float]] = field(factory=dict, init=False)

    def saw(self, key: StepKey, seconds: float, *, at: int = 0) -> None:
        """A step of `key` took `seconds` of the device's time; a chunk of a prompt began at position `at`."""
        if isinstance(key, ExtendKey):
            self._extend.setdefault(key.chunk, Prompts()).add(at, seconds)
            return
        last = self._last.setdefault(key, deque(maxlen=REMEMBERED))
        last.append(seconds)
        if isinstance(key, DecodeKey):
            self._decode[key.rows] = _median(last) / key.steps
        elif isinstance(key, VerifyKey):
            self._other[key] = _median(last)

    def decode(self, rows: int) -> float:
        """Seconds until `rows` requests have one more token each; rather too few than too many; 0 = not known."""
        return max((seconds for seen, seconds in self._decode.items() if seen <= rows), default=0.0)

    def verify(self, key: VerifyKey) -> float:
        """Seconds of a step that verifies guesses; 0 = not known."""
        return self._other.get(key, 0.0)

    def extend(self, chunk: int, *, at: int = 0) -> float:
        """Seconds of a prompt step at position `at`; in unknown units as long as no step at all was measured."""
        known = self._extend.get(chunk)
        if known is not None:
            return known.seconds(at, self._slope(chunk))
        extends = {seen: prompts.seconds(at, self._slope(seen)) for seen, prompts in self._extend.items()}
        # A decode step computes tokens too: beside a single measured chunk it tells what a step costs by being one.
        measured = extends if len(extends) > 1 else self._decode | extends
        return _along(sorted(measured.items()), chunk)

    def usual(self, key: StepKey, *, at: int = 0) -> float:
        """Seconds that a step of `key` has taken so far; 0 where it has not run."""
        match key:
            case ExtendKey(chunk):
                return self.extend(chunk, at=at) if chunk in self._extend else 0.0
            case DecodeKey(rows, steps):
                return self._decode.get(rows, 0.0) * steps
        return self._other.get(key, 0.0)

    def cut(self, tokens: int, chunks: Sequence[int], *, at: int = 0) -> int:
        """The chunk, of `chunks` (ascending), with which to begin a prompt of `tokens`: the largest as long as it is full,
        then whatever is cheaper, padding or another step."""
        if tokens >= chunks[-1]:
            return chunks[-1]
        above = bisect_left(chunks, tokens)
        if above == 0 or not self.padded:
            return chunks[above]
        pieces = self._pieces(tokens, chunks[:above], at)
        return chunks[above] if self.extend(chunks[above], at=at) <= pieces else chunks[above - 1]

    def _pieces(self, tokens: int, chunks: Sequence[int], at: int) -> float:
        """Seconds for `tokens` in a full chunk of the largest of `chunks` and whatever is best for the rest."""
        seconds = 0.0
        while tokens > 0:
            chunk = self.cut(tokens, chunks, at=at)
            seconds += self.extend(chunk, at=at)
            tokens -= chunk
        return seconds

    def _slope(self, chunk: int) -> float:
        """Of a larger chunk at least that of a smaller one: both read all that stands before them."""
        slopes = (prompts.slope for seen, prompts in self._extend.items() if seen <= chunk)
        return max((slope for slope in slopes if slope is not None), default=0.0)


def _median(values: Collection[Number]) -> Number:
    """The lower one of two."""
    return sorted(values)[(len(values) - 1) // 2]


def _along(points: Sequence[Point], size: int) -> float:
    """The line through the measured `points` at `size`; what is smaller than all of them costs what the smallest does."""
    if not points:
        return float(size + GUESS)
    after = next((i for i, (seen, _) in enumerate(points) if seen >= size), len(points))
    if after == 0:
        return points[0][1]
    if len(points) == 1:
        seen, seconds = points[0]
        return seconds * size / seen
    (x0, y0), (x1, y1) = points[after - 1 : after + 1] if after < len(points) else points[-2:]
    return max(y0, y0 + (y1 - y0) * (size - x0) / (x1 - x0))
