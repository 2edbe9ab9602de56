"""What one engine step does, as data: the words between scheduler and runner. Knows neither policy nor device."""

from attrs import frozen

from neuron_jax.engine.requests import Request
from neuron_jax.workers.frames import Alternative


@frozen
class Row:
    """One request's part of a step: tokens [start, start + count) are computed; `samples` when the last is the newest."""

    request: Request
    start: int
    count: int
    samples: bool


@frozen
class Batch:
    """Rows computed together. Either one row with a chunk of its prompt, or many rows of one token each."""

    rows: tuple[Row, ...]

    @property
    def is_decode(self) -> bool:
        return all(row.count == 1 and row.samples for row in self.rows)

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)


@frozen
class Sampled:
    """A sampled token with the model's own log-probabilities (before temperature and penalties) where asked for."""

    token: int
    logprob: float
    alternatives: tuple[Alternative, ...] = ()
