"""What one failed try of a request means: whether it may be tried again and where, and whether the replica is at fault. Pure.

The table of docs/wire.md, "What is tried again". A request that a neuron was working on when its connection broke is not
sent to any other: it may be what ended it. What is tried again is so before the client has had a byte of an answer.
"""

from typing import Literal

from attrs import frozen

from cortex_gateway.dialects.failure import Failure
from cortex_gateway.errors import (
    NeuronRefused,
    NotConnected,
    UpstreamMalformed,
    UpstreamReadFailed,
    UpstreamUnreachable,
)

ATTEMPTS = 3
"""Tries of one request, all in all."""
BROKEN = 1
"""So often a request that broke something, which may be its own doing, is tried on another node."""

Again = Literal["never", "broken", "elsewhere", "anywhere"]


@frozen
class Fault:
    """What one failed try means.

    Attributes:
        again: never; on another replica, for `broken` BROKEN times only; or wherever the fleet says, a cold load included.
        blames: it counts against the replica.
        suspect: the node may be gone.
        absent: the node does not have the model.
    """

    again: Again = "never"
    blames: bool = False
    suspect: bool = False
    absent: bool = False


def fault(error: BaseException) -> Fault:
    """Of what a try ended with. Whatever is not the neuron's, the client's leaving for one, is nobody's fault."""
    match error:
        case NotConnected():
            return Fault("anywhere", suspect=True)
        case UpstreamUnreachable() | UpstreamReadFailed():
            return Fault(blames=True, suspect=True)
        case UpstreamMalformed():
            return Fault("broken" if (error.answered or 0) >= 500 else "never", blames=True)
        case NeuronRefused():
            return _refusal(error.status, error.code, died=bool(error.extras.get("engine_died")))
        case _:
            return Fault()


def _refusal(status: int, code: str | None, *, died: bool) -> Fault:
    if (status, code) == (404, "model_not_found"):
        return Fault("anywhere", absent=True)
    if status < 500:
        return Fault()
    if code == "rate_limit_exceeded":
        return Fault("elsewhere")
    if died:
        return Fault(blames=True)
    return Fault("elsewhere" if status == 503 else "broken", blames=True)


def blames(failure: Failure) -> bool:
    """Whether an error inside a stream is the replica's fault."""
    return failure.type == "api_error"
