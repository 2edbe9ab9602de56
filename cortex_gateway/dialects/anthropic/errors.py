"""The Anthropic error envelope, HTTP body and stream event; knows failures, not where they come from."""

import msgspec

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.failure import Failure

# Source: https://docs.anthropic.com/en/api/errors
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "invalid_request_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def body(failure: Failure, request_id: str) -> bytes:
    """`{"type":"error","error":{type, message},"request_id"}`."""
    error = {"type": TYPES.get(failure.status, "api_error"), "message": message(failure)}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id})


def event(failure: Failure, request_id: str) -> bytes:
    """The last event of a stream that failed; no `message_stop` follows it."""
    return sse.encode(body(failure, request_id), "error")


def message(failure: Failure) -> str:
    """The words; clients compact their history when they read the sentence of an overlong prompt."""
    if failure.code != "context_length_exceeded":
        return failure.message
    length, maximum = failure.extras.get("prompt_len"), failure.extras.get("max")
    if not (isinstance(length, int) and isinstance(maximum, int)):
        return f"prompt is too long: {failure.message}"
    return f"prompt is too long: {length} tokens > {maximum} maximum"
