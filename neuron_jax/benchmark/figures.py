"""What clients would have seen, from the times at which tokens came; pure arithmetic in seconds, no clock, no engine."""

import statistics
from collections.abc import Sequence
from itertools import pairwise

from attrs import frozen


@frozen
class Stream:
    """One request: when it was sent, and when how many tokens came."""

    sent: float
    arrivals: tuple[tuple[float, int], ...]

    @property
    def first(self) -> float:
        return self.arrivals[0][0]

    @property
    def last(self) -> float:
        return self.arrivals[-1][0]

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def gaps(self) -> list[float]:
        """Between one arrival and the next; tokens that come together are one arrival."""
        times = [time for time, _ in self.arrivals]
        return [after - before for before, after in pairwise(times)]

    def between(self, begin: float, end: float) -> int:
        """Tokens that came after `begin` and not after `end`."""
        return sum(count for time, count in self.arrivals if begin < time <= end)


Round = Sequence[Stream]


@frozen
class Spread:
    """Some durations in seconds; all 0 where there were none."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        shares = (percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)) if values else (0.0,) * 4
        return cls(*shares)


@frozen
class DecodeFigures:
    """Medians over rounds; spreads over all rounds and streams.

    `total`: tokens per second from sending to the last token, prompts included. `decode`: tokens per second of all
    streams together while all of them generate. `stream`: of one stream after its first token.
    """

    total: float
    decode: float
    stream: float
    first: Spread
    gaps: Spread
    tokens_per_gap: float


@frozen
class LongFigures:
    """How running streams fared while a long prompt entered; gaps in seconds. `first` is the long prompt's first token."""

    first: float
    alone: Spread
    beside: Spread
    ratio: float  # slowest gap while it entered / median gap before
    ratio_beside: float  # the same / median gap while it entered


def decode_figures(rounds: Sequence[Round]) -> DecodeFigures:
    """The figures of one case."""
    streams = [stream for streams in rounds for stream in streams]
    gaps = [gap for stream in streams for gap in stream.gaps]
    return DecodeFigures(
        total=statistics.median(_total_rate(streams) for streams in rounds),
        decode=statistics.median(_decode_rate(streams) for streams in rounds),
        stream=statistics.median(_stream_rate(stream) for stream in streams),
        first=Spread.of([stream.first - stream.sent for stream in streams]),
        gaps=Spread.of(gaps),
        tokens_per_gap=sum(s.tokens - s.arrivals[0][1] for s in streams) / len(gaps) if gaps else 0.0,
    )


def prefill_rate(rounds: Sequence[Stream], prompt: int) -> float:
    """Prompt tokens per second up to the first token, the median of rounds."""
    return prompt / statistics.median(stream.first - stream.sent for stream in rounds)


def long_figures(rounds: Sequence[tuple[Round, Stream]]) -> LongFigures:
    """The figures of streams beside a long prompt; a gap counts as beside it when it ends while the prompt enters."""
    alone = [gap for streams, long in rounds for s in streams for gap in _gaps_within(s, s.first, long.sent)]
    beside = [gap for streams, long in rounds for s in streams for gap in _gaps_within(s, long.sent, long.first)]
    before, during = Spread.of(alone), Spread.of(beside)
    return LongFigures(
        first=statistics.median(long.first - long.sent for _, long in rounds),
        alone=before,
        beside=during,
        ratio=during.max / before.p50 if alone else 0.0,
        ratio_beside=during.max / during.p50 if beside else 0.0,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie, linear between neighbours; `values` is not empty."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _gaps_within(stream: Stream, begin: float, end: float) -> list[float]:
    times = [time for time, _ in stream.arrivals]
    return [after - before for before, after in pairwise(times) if begin < after <= end]


def _total_rate(streams: Round) -> float:
    return sum(s.tokens for s in streams) / (max(s.last for s in streams) - min(s.sent for s in streams))


def _decode_rate(streams: Round) -> float:
    """While all streams generate; 0 where the first ended before the last began."""
    begin, end = max(s.first for s in streams), min(s.last for s in streams)
    return sum(s.between(begin, end) for s in streams) / (end - begin) if end > begin else 0.0


def _stream_rate(stream: Stream) -> float:
    after = stream.tokens - stream.arrivals[0][1]
    return after / (stream.last - stream.first) if after else 0.0
