"""The declared list of compiled programs: every shape the engine can run, as data. Knows no JAX."""

from collections.abc import Sequence
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

    def essential(self) -> list[Key]:
        """The fewest programs that serve anything, padded more than one would like, and the decode step of one stream."""
        most = self.rows[-1]
        forwards = {ForwardKey(1, self.chunks[-1]), ForwardKey(most, 1), ForwardKey(1, 1)}
        samples = {SampleKey(rows, Sampler.FULL) for rows in (1, most)}
        keys: list[Key] = [*sorted(forwards, reverse=True), *sorted(samples)]
        return keys

    def keys(self) -> list[Key]:
        """Every program, in the order of compiling: the essential ones, then by how soon they are likely to be missed."""
        keys: list[Key] = [*self.essential(), *_samplers(1)]
        keys += [ForwardKey(1, chunk) for chunk in self.chunks]
        for rows in self.rows:
            keys += [ForwardKey(rows, 1), *_samplers(rows)]
        return list(dict.fromkeys(keys))


def _samplers(rows: int) -> list[SampleKey]:
    # FULL first: a row count can be used as soon as one sampler that does everything stands beside it.
    return [SampleKey(rows, kind) for kind in (Sampler.FULL, Sampler.GREEDY, Sampler.DRAW)]


def declare(*, max_slots: int, chunk_tokens: int) -> Buckets:
    """Powers of two for rows, of four for chunks: at most half, at most three quarters of a step is padding."""
    rows = [2**i for i in range(max_slots.bit_length()) if 2**i < max_slots] + [max_slots]
    chunks = [chunk for chunk in (16, 64, 256, 1024, 4096) if chunk < chunk_tokens] + [chunk_tokens]
    return Buckets(tuple(rows), tuple(chunks))


def fit(size: int, available: Sequence[int]) -> int:
    """The smallest of `available` that holds `size`."""
    return min(bucket for bucket in available if bucket >= size)
