"""How long steps take, learnt from the steps before: pure arithmetic on the seconds it is told; knows no clock.

What it says only decides how work is cut, never what comes out.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from attrs import define, field

from neuron_jax.engine.buckets import DecodeKey, ExtendKey, StepKey, VerifyKey

REMEMBERED = 5
"""Times of a program of which the median counts: few, because attention makes chunks dearer as a prompt grows; and not the
mean, because a first run, or one beside something else, takes many times as long."""

GUESS = 32
"""Tokens that a step's fixed cost is taken to be worth as long as nothing was measured."""

Point = tuple[int, float]


@define(eq=False)
class Pace:
    """Seconds per program: measured where it ran, else drawn through those that did."""

    _decode: dict[int, float] = field(factory=dict, init=False)  # rows -> seconds for one token of each
    _extend: dict[int, float] = field(factory=dict, init=False)  # chunk -> seconds
    _verify: dict[VerifyKey, float] = field(factory=dict, init=False)
    _last: dict[StepKey, deque[float]] = field(factory=dict, init=False)

    def saw(self, key: StepKey, seconds: float) -> None:
        """A step of `key` took `seconds` of the device's time."""
        last = self._last.setdefault(key, deque(maxlen=REMEMBERED))
        last.append(seconds)
        usual = sorted(last)[(len(last) - 1) // 2]
        match key:
            case DecodeKey(rows, steps):
                self._decode[rows] = usual / steps
            case ExtendKey(chunk):
                self._extend[chunk] = usual
            case VerifyKey():
                self._verify[key] = usual

    def decode(self, rows: int) -> float:
        """Seconds until `rows` requests have one more token each; rather too few than too many; 0 = not known."""
        return max((seconds for seen, seconds in self._decode.items() if seen <= rows), default=0.0)

    def verify(self, key: VerifyKey) -> float:
        """Seconds of a step that verifies guesses; 0 = not known."""
        return self._verify.get(key, 0.0)

    def extend(self, chunk: int) -> float:
        """Seconds of a prompt step; in unknown units as long as no step at all was measured."""
        known = self._extend.get(chunk)
        if known is not None:
            return known
        # A decode step computes tokens too: beside a single measured chunk it tells what a step costs by being one.
        measured = self._extend if len(self._extend) > 1 else self._decode | self._extend
        return _along(sorted(measured.items()), chunk)

    def cut(self, tokens: int, chunks: Sequence[int]) -> int:
        """The chunk, of `chunks` (ascending), with which to begin a prompt of `tokens`: the largest as long as it is full,
        then whatever is cheaper, padding or another step."""
        if tokens >= chunks[-1]:
            return chunks[-1]
        above = bisect_left(chunks, tokens)
        if above == 0:
            return chunks[0]
        pieces = self._pieces(tokens, chunks[:above])
        return chunks[above] if self.extend(chunks[above]) <= pieces else chunks[above - 1]

    def _pieces(self, tokens: int, chunks: Sequence[int]) -> float:
        """Seconds for `tokens` in a full chunk of the largest of `chunks` and whatever is best for the rest."""
        seconds = 0.0
        while tokens > 0:
            chunk = self.cut(tokens, chunks)
            seconds += self.extend(chunk)
            tokens -= chunk
        return seconds


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
