"""How much a key has used of what it may use. Pure: the time is handed in, in seconds of a clock that never goes back."""

import math

from attrs import define, field

from cortex_gateway.auth.principal import Limits
from cortex_gateway.errors import RateLimited

MINUTE = 60.0
_ROUNDING = 1e-6  # seconds: who waited as long as he was told is not refused for the last bit of a sum


@define
class Bucket:
    """A token bucket: a minute's worth at the beginning and at most, filled evenly, taken from as things are used.

    It may go below nothing, because the tokens of an answer are known at its end; so the average holds over any time,
    however large one request is. Source: https://docs.anthropic.com/en/api/rate-limits ("token bucket algorithm").
    """

    per_minute: int
    _level: float = field(init=False)
    _at: float | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._level = float(self.per_minute)

    def wait(self, now: float) -> float:
        """Seconds until there is one; 0 when there is."""
        self._fill(now)
        seconds = (1.0 - self._level) * MINUTE / self.per_minute
        return seconds if seconds > _ROUNDING else 0.0

    def take(self, now: float, amount: int) -> None:
        """Use so many, whether they are there or not."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        passed = 0.0 if self._at is None else now - self._at
        self._at = now
        self._level = min(float(self.per_minute), self._level + passed * self.per_minute / MINUTE)


@define
class Meter:
    """What one key uses. `enter` before a request, `leave` once after it, however it ended."""

    limits: Limits
    running: int = field(default=0, init=False)
    _requests: Bucket | None = field(init=False)
    _tokens: Bucket | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._requests = _bucket(self.limits.requests_per_minute)
        self._tokens = _bucket(self.limits.tokens_per_minute)

    def enter(self, now: float) -> None:
        """Count a request. Raises RateLimited, and counts nothing, where a limit is reached."""
        self._check(now)
        self.running += 1
        if self._requests:
            self._requests.take(now, 1)

    def leave(self, now: float, tokens: int) -> None:
        """It has ended and used `tokens`, of its prompt and of its answer."""
        self.running -= 1
        if self._tokens:
            self._tokens.take(now, tokens)

    def _check(self, now: float) -> None:
        """The limit that keeps him waiting longest is the one that is told."""
        waits = [
            (bucket.wait(now), f"{bucket.per_minute} {what} a minute")
            for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens"))
            if bucket
        ]
        seconds, limit = max(waits, default=(0.0, ""))
        if seconds:
            after = max(1, math.ceil(seconds - _ROUNDING))
            raise RateLimited(f"This key may use {limit}: try again in {after} s.", retry_after=after)
        most = self.limits.max_concurrent
        if most is not None and self.running >= most:
            raise RateLimited(
                f"This key may have {most} requests under way at once: wait until one has ended.", retry_after=1
            )


def _bucket(per_minute: int | None) -> Bucket | None:
    return None if per_minute is None else Bucket(per_minute)
