"""The OpenAI error envelope, HTTP body and stream event; knows failures, not where they come from."""

import msgspec

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.failure import Failure


def body(failure: Failure) -> bytes:
    """`{"error":{message, type, code, param, …extras}}`."""
    error = {
        "message": failure.message,
        "type": failure.type,
        "code": failure.code,
        "param": failure.param,
        **failure.extras,
    }
    return msgspec.json.encode({"error": error})


def event(failure: Failure) -> bytes:
    """The last event of a stream that failed; no `[DONE]` follows it."""
    return sse.encode(body(failure))


def read(status: int, raw: bytes, retry_after: int | None = None) -> Failure | None:
    """A neuron's envelope as a Failure, or None when `raw` is not one. A bare string counts as message."""
    try:
        error = msgspec.json.decode(raw)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return of_envelope(status, error, retry_after)


def of_envelope(status: int, error: object, retry_after: int | None = None) -> Failure | None:
    """The value under `error` as a Failure, or None."""
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    known = ("message", "type", "code", "param")
    kind, code, param = (value if isinstance(value, str) else None for value in map(error.get, known[1:]))
    extras = {str(key): value for key, value in error.items() if key not in known}
    fallback = "invalid_request_error" if status < 500 else "api_error"
    return Failure(status, kind or fallback, code, error["message"], param, retry_after, extras)
