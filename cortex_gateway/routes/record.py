"""What one request's record collects on its way, as metrics and the list of live requests tell it; knows no wire format."""

import time

from attrs import define, field

from cortex_gateway.dialects.dialect import Timing
from cortex_gateway.dialects.events import Usage
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.fleet.leases import Lease
from cortex_gateway.metrics import RequestRecord

UNKNOWN = "unknown"
CLIENT_CLOSED_REQUEST = 499  # nginx's number for an answer that nobody waited for


@define
class Record:
    """One request as metrics will see it; `dialect` is the route's label. Seconds count from its arrival to its last byte."""

    dialect: str
    request_id: str = ""
    model: str = UNKNOWN
    node: str = ""
    cold: bool = False
    outcome: str = "ok"
    failure: Failure | None = None
    usage: Usage | None = None
    answer: str = ""  # what the client calls an answer that it may cancel
    passed: int = 0  # pieces of the answer that went by; what is known of its tokens where usage is not
    _arrived: float = field(factory=time.perf_counter, init=False)
    _leased: float | None = field(default=None, init=False)
    _first_token: float | None = field(default=None, init=False)

    @property
    def tokens(self) -> int:
        """Of the prompt and of the answer, as far as they are known."""
        return self.passed if self.usage is None else self.usage.prompt + self.usage.completion

    @property
    def seconds(self) -> float:
        """Since its arrival."""
        return time.perf_counter() - self._arrived

    def timing(self) -> Timing:
        """What an answer may tell of it."""
        now = time.perf_counter()
        return Timing(now - self._arrived, (self._leased or now) - self._arrived)

    def leased(self, lease: Lease) -> None:
        """Which replica serves it."""
        self._leased = time.perf_counter()
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
            request_id=self.request_id,
            outcome=self.outcome,
            status=status or CLIENT_CLOSED_REQUEST,
            seconds=now - self._arrived,
            wait_seconds=None if self._leased is None else self._leased - self._arrived,
            ttft_seconds=None if first is None else first - self._arrived,
            prompt_tokens=None if self.usage is None else self.usage.prompt,
            completion_tokens=(self.passed or None) if self.usage is None else self.usage.completion,
            cached_tokens=None if self.usage is None else self.usage.cached,
            cold=self.cold,
            decode_seconds=None if first is None else now - first,
        )
