"""What every route works with, and what one request's record collects; knows the fleet's border, no wire format."""

import time

from attrs import define, field, frozen
from litestar.datastructures import State

from cortex_gateway.auth.guard import Guard
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.events import Usage
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.table import spoken
from cortex_gateway.fleet.fleet import Fleet, Lease
from cortex_gateway.metrics import Metrics, RequestRecord

UNKNOWN = "unknown"
CLIENT_CLOSED_REQUEST = 499  # nginx's number for an answer that nobody waited for


@frozen
class Gateway:
    """The parts of a running gateway.

    Attributes:
        fleet: who has what model, and the HTTP client to reach them.
        metrics: where finished requests are counted.
        guard: who may do what.
        max_body_bytes: a larger request body is refused.
        body_silence_secs: how long a client may send nothing of a body that it began.
        keep_alive_seconds: how long a client that asked for a stream may be left in silence.
        dialects: all that are spoken; the first one tells the errors of paths that are no dialect's own.
    """

    fleet: Fleet
    metrics: Metrics
    guard: Guard
    max_body_bytes: int
    body_silence_secs: float
    keep_alive_seconds: float
    dialects: tuple[Dialect, ...]

    @classmethod
    def of(cls, state: State) -> "Gateway":
        """The gateway that `create_app` put there."""
        gateway = state["gateway"]
        assert isinstance(gateway, cls)
        return gateway

    def spoken(self, path: str) -> Dialect:
        """The dialect that errors on `path` are told in."""
        return spoken(self.dialects, path)


@define
class Record:
    """One request as metrics will see it; `dialect` is the route's label. Seconds count from its arrival to its last byte."""

    dialect: str
    model: str = UNKNOWN
    node: str = ""
    cold: bool = False
    outcome: str = "ok"
    failure: Failure | None = None
    usage: Usage | None = None
    passed: int = 0  # pieces of the answer that went by; what is known of its tokens where usage is not
    _arrived: float = field(factory=time.perf_counter, init=False)
    _first_token: float | None = field(default=None, init=False)

    @property
    def tokens(self) -> int:
        """Of the prompt and of the answer, as far as they are known."""
        return self.passed if self.usage is None else self.usage.prompt + self.usage.completion

    def leased(self, lease: Lease) -> None:
        """Which replica serves it."""
        self.model, self.node, self.cold = lease.model, lease.node, self.cold or lease.cold

    def token(self, passed: int) -> None:
        """Text, reasoning or a tool call is here, `passed` pieces of it by now."""
        self.passed = passed
        if self._first_token is None:
            self._first_token = time.perf_counter()

    def failed(self, failure: Failure) -> None:
        """It ended in an error. A name that nobody knows is no label."""
        self.outcome, self.failure = "error", failure
        if failure.code == "model_not_found":
            self.model = UNKNOWN

    def finish(self, status: int) -> RequestRecord:
        """The record of a request that has ended with `status`, 0 for one that was not answered."""
        now = time.perf_counter()
        first = self._first_token
        return RequestRecord(
            model=self.model,
            node=self.node,
            dialect=self.dialect,
            outcome=self.outcome,
            status=status or CLIENT_CLOSED_REQUEST,
            seconds=now - self._arrived,
            ttft_seconds=None if first is None else first - self._arrived,
            prompt_tokens=None if self.usage is None else self.usage.prompt,
            completion_tokens=(self.passed or None) if self.usage is None else self.usage.completion,
            cached_tokens=None if self.usage is None else self.usage.cached,
            cold=self.cold,
            decode_seconds=None if first is None else now - first,
        )
