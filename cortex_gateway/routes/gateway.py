"""What every route is given: the fleet, metrics, live requests; knows the fleet's interface, no wire format."""

from collections.abc import Callable

from attrs import field, frozen
from litestar.datastructures import State

from cortex_gateway.answers import Answers
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.table import spoken
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from cortex_gateway.routes.followed import Followed
from cortex_gateway.routes.live import LiveRequests

Reread = Callable[[], Config]


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
        answers: those that are kept.
        reread: reads the operator's files again; None = there are none. Raises ConfigError.
        live: the requests under way.
        followed: events of answers that are made in the background.
        dialects: all that are spoken; the first one tells the errors of paths that are no dialect's own.
    """

    fleet: Fleet
    metrics: Metrics
    guard: Guard
    max_body_bytes: int
    body_silence_secs: float
    keep_alive_seconds: float
    dialects: tuple[Dialect, ...]
    answers: Answers
    reread: Reread | None = None
    told: set[str] = field(factory=set)  # what the log has said once
    live: LiveRequests = field(factory=LiveRequests)
    followed: Followed = field(factory=Followed)

    @classmethod
    def of(cls, state: State) -> "Gateway":
        """The gateway that `create_app` put there."""
        gateway = state["gateway"]
        assert isinstance(gateway, cls)
        return gateway

    def spoken(self, path: str) -> Dialect:
        """The dialect that errors on `path` are told in."""
        return spoken(self.dialects, path)
