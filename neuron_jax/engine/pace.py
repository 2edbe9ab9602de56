"""How long steps take, learnt from the steps before: pure arithmetic on the seconds it is told; knows no clock.

What it says only decides how work is cut, never what comes out.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Sequence

from attrs import define, field

from neuron_jax.engine.buckets import StepKey

REMEMBERED = 5
"""Times of a size of which the median counts: not the mean, because a first run, or one beside something else, takes
many times as long; and few, because the pace changes."""

SPAN = 512
"""Positions between two looks at how much dearer a size becomes by its tokens' standing deeper in their texts."""

NEAR = 4
"""Smaller sizes, at most, that say what a step takes."""

LEAST = 0.25
"""Share of what a step takes deep in a text that is not for depth, at least: a slope that was measured beside something
else would otherwise say that a step at a text's beginning takes no time at all."""

GUESS = 32
"""Tokens that a step's fixed cost is taken to be worth as long as nothing was measured."""

Point = tuple[float, float]


@define(eq=False)
class Size:
    """Steps of one size. Attention makes them dearer with every position that their tokens are deeper in their texts: by
    `slope` seconds."""

    slope: float | None = field(default=None, init=False)
    _last: deque[Point] = field(factory=lambda: deque(maxlen=REMEMBERED), init=False)  # position, seconds
    _anchor: Point | None = field(default=None, init=False)

    def add(self, at: float, seconds: float) -> None:
        self._last.append((at, seconds))
        if len(self._last) < REMEMBERED:
            return
        here = _median([at for at, _ in self._last]), _median([seconds for _, seconds in self._last])
        if self._anchor is None:
            self._anchor = here
        elif abs(here[0] - self._anchor[0]) >= SPAN:
            self.slope = max((here[1] - self._anchor[1]) / (here[0] - self._anchor[0]), 0.0)
            self._anchor = here

    def seconds(self, at: float, slope: float) -> float:
        """What one at position `at` usually takes, by the last ones and `slope`, which may be measured wrong."""
        return _median([max(seconds + slope * (at - seen), LEAST * seconds) for seen, seconds in self._last])


@define(eq=False)
class Pace:
    """Seconds per size of a step: measured where it ran, else drawn through those that did.

    `padded`: whether a step costs the same however much of it is padding.
    """

    padded: bool = True
    _sizes: dict[int, Size] = field(factory=dict, init=False)  # by tokens, ascending
    _slopes: dict[int, float] = field(factory=dict, init=False)  # what each is taken to have
    _gaps: deque[float] = field(factory=lambda: deque(maxlen=REMEMBERED), init=False)

    @property
    def measured(self) -> bool:
        return bool(self._sizes)

    @property
    def gap(self) -> float:
        """What streams are used to: seconds between tokens, or between bursts of them, while there is no prompt; 0 at first."""
        return _median(self._gaps) if self._gaps else 0.0

    def saw(self, key: StepKey, seconds: float, *, at: float = 0, prompts: bool) -> None:
        """A step of `key` took `seconds` of the device's time; its tokens stood at position `at` on average, those of
        `prompts` among them or not."""
        known = self._sizes.get(key.tokens)
        size = known or Size()
        slope = size.slope
        size.add(at, seconds / key.steps)
        if known is None or size.slope != slope:
            self._sizes = dict(sorted({**self._sizes, key.tokens: size}.items()))
            self._slopes = {tokens: self._slope(tokens) for tokens in self._sizes}
        if not prompts:
            self._gaps.append(seconds)

    def seconds(self, tokens: int, *, at: float = 0) -> float:
        """Of a step of so many tokens at position `at`; in unknown units as long as no step at all was measured.

        A larger step takes no less time than a smaller one, and a token in it no more. So what was measured at a bad moment
        is tried again once smaller steps say that it cannot be so slow.
        """
        sizes = list(self._sizes)
        place = bisect_left(sizes, tokens)
        near = sizes[max(place - NEAR, 0) : place + 2]
        points = [(size, self._sizes[size].seconds(at, self._slopes[size])) for size in near]
        smaller = [(size, seconds) for size, seconds in points if size < tokens]
        least = max((seconds for _, seconds in smaller), default=0.0)
        most = min((seconds * tokens / size for size, seconds in smaller), default=float("inf"))
        return max(min(dict(points).get(tokens, _along(points, tokens)), most), min(least, most))

    def bounds(self, tokens: int) -> bool:
        """Whether a step so small was measured that it tells what one of so many tokens costs at most by being one."""
        return any(size <= tokens for size in self._sizes)

    def usual(self, key: StepKey, *, at: float = 0) -> float:
        """Seconds that a step of `key` has taken so far; 0 where it has not run."""
        return self.seconds(key.tokens, at=at) * key.steps if key.tokens in self._sizes else 0.0

    def most(self, seconds: float, sizes: Sequence[int], at: Callable[[int], float]) -> int:
        """The largest of `sizes` (ascending) that takes at most `seconds` `at` its position; 0 when none does."""
        count = bisect_right(sizes, seconds, key=lambda size: self.seconds(size, at=at(size)))
        return sizes[count - 1] if count else 0

    def cut(self, tokens: int, sizes: Sequence[int], *, at: float = 0) -> int:
        """The size, of `sizes` (ascending), with which to begin on `tokens` tokens: the largest as long as it is full, then
        whatever is cheaper, padding or another step."""
        if tokens >= sizes[-1]:
            return sizes[-1]
        above = bisect_left(sizes, tokens)
        if above == 0 or not self.padded:
            return sizes[above]
        pieces = self._pieces(tokens, sizes[:above], at)
        return sizes[above] if self.seconds(sizes[above], at=at) <= pieces else sizes[above - 1]

    def _pieces(self, tokens: int, sizes: Sequence[int], at: float) -> float:
        """Seconds for `tokens` in a full step of the largest of `sizes` and whatever is best for the rest."""
        seconds = 0.0
        while tokens > 0:
            size = self.cut(tokens, sizes, at=at)
            seconds += self.seconds(size, at=at)
            tokens -= size
        return seconds

    def _slope(self, tokens: int) -> float:
        """Of a larger step at least that of a smaller one, and of a smaller one its share of a larger one's."""
        known = ((seen, size.slope) for seen, size in self._sizes.items())
        return max((slope * min(tokens / seen, 1.0) for seen, slope in known if slope is not None), default=0.0)


def _median(values: Collection[float]) -> float:
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
