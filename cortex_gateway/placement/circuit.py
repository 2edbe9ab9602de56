"""Whether a replica that fails again and again is given a rest. Pure: times are handed in, seconds on the caller's clock.

    closed ── FAILURES in a row ──▶ open ── its rest is over ──▶ half open ── one request tries it ──┐
      ▲                               ▲                                                              │
      └── the answer has begun ───────┼──────────────────────────────────────────────────────────────┤
                                      └── it failed: a rest twice as long ───────────────────────────┘

A resting replica is the last choice, not a forbidden one: where no other serves the model it is asked all the same.
"""

from typing import Literal

from attrs import evolve, frozen

FAILURES = 3
"""So many in a row begin a rest."""
REST_SECS, MOST_REST_SECS = 5.0, 60.0
"""The first rest, and the longest."""

CircuitState = Literal["closed", "open", "half_open"]


@frozen(kw_only=True)
class Circuit:
    """One replica's. `failures` in a row; `until`: its rest ends then, None = closed; `rest_secs`: the rest before."""

    failures: int = 0
    failed_at: float = 0.0
    reason: str = ""
    until: float | None = None
    rest_secs: float = 0.0
    trial: bool = False  # a request is trying it

    def state(self, now: float) -> CircuitState:
        if self.until is None:
            return "closed"
        return "open" if now < self.until else "half_open"

    def rests(self, now: float) -> bool:
        """Requests go elsewhere, if they can."""
        return self.state(now) == "open" or self.trial

    def tried(self, now: float) -> "Circuit":
        """A request is sent to it: the one that tries it, where its rest is over."""
        return evolve(self, trial=True) if self.state(now) == "half_open" else self

    def begun(self) -> "Circuit":
        """The one that tries it is being answered. Others may follow, and one more failure is one too many."""
        return evolve(self, failures=FAILURES - 1, until=None, trial=False)

    def served(self, sent: float) -> "Circuit":
        """A request that was sent at `sent` has ended well; one sent before the last failure says nothing of now."""
        return Circuit() if sent >= self.failed_at else self

    def failed(self, now: float, reason: str) -> "Circuit":
        """A request has failed on it."""
        worse = evolve(self, failures=self.failures + 1, failed_at=now, reason=reason)
        if self.state(now) == "open" or worse.failures < FAILURES:
            return worse
        rest = min(self.rest_secs * 2 or REST_SECS, MOST_REST_SECS)
        return evolve(worse, until=now + rest, rest_secs=rest, trial=False)

    def left(self) -> "Circuit":
        """The one that tried it has ended without a verdict: the next one tries it."""
        return evolve(self, trial=False)
