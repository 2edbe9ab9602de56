"""A failure in neutral terms, and the exception by which a codec refuses a request; knows no dialect's spelling."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


@frozen
class Failure:
    """One row of docs/wire.md section 4 with its details.

    Attributes:
        status: HTTP status it has, or would have had when the stream has begun.
        type: OpenAI's error type, which is the wire's own.
        code: machine-readable code, or None.
        param: the field at fault.
        retry_after: seconds for the Retry-After header.
        extras: further keys of the OpenAI envelope.
    """

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    retry_after: int | None = None
    extras: Mapping[str, Any] = field(factory=dict)


class RefusedError(Exception):
    """The request cannot be expressed for a neuron; the reason is `failure`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def malformed(message: str) -> Failure:
    """What a neuron sent is not what the wire says."""
    return Failure(502, "api_error", "upstream_malformed_response", message)
