"""Every error a client can get, as the one envelope of docs/wire.md section 4; knows no framework and no engine."""

from collections.abc import Iterable, Mapping
from typing import Any

from neuron_jax.common.names import nearest

INVALID = "invalid_request_error"
API = "api_error"
RATE = "rate_limit_error"
AUTHENTICATION = "authentication_error"
PERMISSION = "permission_error"


class Problem(Exception):  # noqa: N818 - it is an answer, not only an error
    """An answer other than success: `status`, the envelope's fields, and seconds after which to try again."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        retry_after: int | None = None,
        **extras: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.kind = kind
        self.param = param
        self.retry_after = retry_after
        self.extras: Mapping[str, Any] = extras

    def add(self, **extras: Any) -> None:
        """Says more."""
        self.extras = {**self.extras, **extras}

    def envelope(self) -> dict[str, Any]:
        """The body."""
        error = {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}
        return {"error": {**error, **self.extras}}

    def headers(self) -> dict[str, str]:
        """Retry-After where trying again can help, and how to say who one is where that is asked."""
        again = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return again | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def invalid_body(param: str | None, message: str) -> Problem:
    """400: a field of the body is not what it must be."""
    return Problem(400, "invalid_request_body", message, param=param)


def unsupported(param: str, message: str) -> Problem:
    """400: a parameter that would change the result, and that this server does not do."""
    return Problem(400, "unsupported_parameter", message, param=param)


def malformed_json(detail: str) -> Problem:
    """400: the body is not JSON."""
    return Problem(400, "malformed_json", f"The body is not valid JSON: {detail}")


def unsupported_media(message: str) -> Problem:
    """415: the body is not JSON as it is."""
    return Problem(415, "unsupported_media_type", message)


def unauthorized(code: str, message: str) -> Problem:
    """401: whoever asks must show who it is."""
    return Problem(401, code, message, kind=AUTHENTICATION)


def forbidden(code: str, message: str) -> Problem:
    """403: whoever asks may not."""
    return Problem(403, code, message, kind=PERMISSION)


def context_too_long(param: str, prompt: int, limit: int, *, exact: bool = True) -> Problem:
    """400 in the words that clients match to compact their history. `exact`: `prompt` was counted to the end."""
    more: dict[str, Any] = {} if exact else {"estimated": True}
    return Problem(
        400,
        "context_length_exceeded",
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in {prompt} tokens"
        f"{'' if exact else ' (an estimate)'}. Please reduce the length of the messages.",
        param=param,
        prompt_len=prompt,
        max=limit,
        **more,
    )


def model_not_found(name: str, known: Iterable[str]) -> Problem:
    """404 with the nearest known ids."""
    ids = sorted(known)
    near = nearest(name, ids, 3, 0.3) or ids[:3]
    hint = f" Nearest: {', '.join(near)}." if near else " This neuron has loaded no model."
    return Problem(404, "model_not_found", f"The model {name!r} is not loaded here.{hint}", param="model", nearest=near)


def recovering(model: str, reason: str | None, **extras: Any) -> Problem:
    """503: the engine died and is being started again."""
    return Problem(
        503,
        "service_unavailable",
        f"The engine of {model!r} is being restarted: {reason or 'it ended'}",
        kind=API,
        retry_after=2,
        **extras,
    )


def unavailable(message: str, retry_after: int = 5) -> Problem:
    """503: the model cannot serve now."""
    return Problem(503, "service_unavailable", message, kind=API, retry_after=retry_after)


def insufficient_vram(model: str, device: int, free_mb: int, required_mb: int) -> Problem:
    """503: other programs took the memory that an answer would need."""
    return Problem(
        503,
        "insufficient_vram",
        f"{model!r} takes no new requests: device {device} has {free_mb} MiB free, and needs {required_mb} MiB.",
        kind=API,
        retry_after=5,
        free_mb=free_mb,
        required_mb=required_mb,
    )


def shutting_down() -> Problem:
    """503: this neuron is about to end."""
    return Problem(503, "shutting_down", "This neuron is shutting down.", kind=API, retry_after=15)


def overloaded(queued: int, message: str) -> Problem:
    """503: the queue is full, or the wait was too long."""
    wait = min(max(2 * (queued + 1), 1), 120)
    return Problem(503, "rate_limit_exceeded", message, kind=RATE, retry_after=wait, queued=queued)


def internal(message: str = "The server failed to answer; its log says why.") -> Problem:
    """500: our bug, or an engine's."""
    return Problem(500, None, message, kind=API)
