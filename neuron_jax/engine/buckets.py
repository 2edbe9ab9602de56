"""The declared list of compiled programs: every shape the engine can run, as data. Knows no JAX."""

from collections.abc import Iterator, Sequence
from enum import StrEnum

from attrs import frozen


class Sampler(StrEnum):
    """How much of the sampling pipeline a program contains; a step uses the least that all its rows can live with."""

    GREEDY = "greedy"  # argmax
    DRAW = "draw"  # temperature, top_k, top_p, min_p
    FULL = "full"  # and penalties, logit bias, banned ids, log-probabilities


@frozen(order=True)
class ForwardKey:
    """Hidden states of `rows` requests with up to `chunk` new tokens each."""

    rows: int
    chunk: int

    def __str__(self) -> str:
        return f"forward {self.rows}x{self.chunk}"


@frozen(order=True)
class SampleKey:
    """Logits and the next token of `rows` requests."""

    rows: int
    sampler: Sampler

    def __str__(self) -> str:
        return f"sample {self.rows} {self.sampler}"


Key = ForwardKey | SampleKey


@frozen
class Buckets:
    """Row counts of decode steps and chunk lengths of prompt steps, ascending. A step is padded up to the next one."""

    rows: tuple[int, ...]
    chunks: tuple[int, ...]

    def keys(self) -> Iterator[Key]:
        """Every program, the first `len(self.essential())` of which are enough to serve anything."""
        essential = self.essential()
        yield from essential
        rest: list[Key] = [*self._forwards(), *(SampleKey(r, s) for s in Sampler for r in self.rows)]
        yield from (key for key in rest if key not in essential)

    def essential(self) -> list[Key]:
        """The fewest programs with which every step can run, padded more than one would like."""
        forwards = {ForwardKey(1, self.chunks[-1]), ForwardKey(1, self.chunks[0]), ForwardKey(self.rows[-1], 1)}
        samples = {SampleKey(rows, sampler) for rows in (1, self.rows[-1]) for sampler in Sampler}
        return [*sorted(forwards, reverse=True), *sorted(samples)]

    def _forwards(self) -> list[ForwardKey]:
        return [*(ForwardKey(1, chunk) for chunk in self.chunks), *(ForwardKey(rows, 1) for rows in self.rows)]


def declare(*, max_slots: int, chunk_tokens: int) -> Buckets:
    """Powers of two for rows, of four for chunks: at most half, at most three quarters of a step is padding."""
    rows = [2**i for i in range(max_slots.bit_length()) if 2**i < max_slots] + [max_slots]
    chunks = [chunk for chunk in (16, 64, 256, 1024, 4096) if chunk < chunk_tokens] + [chunk_tokens]
    return Buckets(tuple(rows), tuple(chunks))


def fit(size: int, available: Sequence[int]) -> int:
    """The smallest of `available` that holds `size`."""
    return min(bucket for bucket in available if bucket >= size)
