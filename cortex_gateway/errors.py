"""What can go wrong in the gateway, as one exception tree; knows statuses and codes, not how any dialect spells them.

    CortexError                     500  api_error
    ├── BadRequest                  400  invalid_request_error  (param)
    │   ├── MalformedJson                malformed_json
    │   ├── InvalidBody                  invalid_request_body
    │   ├── Unauthorized            401  invalid_api_key        (challenge)
    │   ├── Forbidden               403  permission_denied
    │   ├── HostNotAllowed          403  host_not_allowed
    │   ├── OriginNotAllowed        403  origin_not_allowed
    │   ├── RouteNotFound           404  not_found
    │   ├── RequestNotFound         404  request_not_found
    │   ├── ModelNotFound           404  model_not_found        (nearest)
    │   ├── MethodNotAllowed        405  method_not_allowed     (allow)
    │   ├── UpgradeRefused          426  no_websocket
    │   ├── RequestTimeout          408  request_timeout
    │   ├── Cancelled               499  request_cancelled
    │   ├── AlreadyLoaded           409  already_loaded         (node, differs)
    │   ├── BodyTooLarge            413  body_too_large         (limit_bytes)
    │   └── UnsupportedMedia        415  unsupported_media_type
    ├── UpstreamError               502  api_error
    │   ├── UpstreamUnreachable          upstream_connection_error
    │   │   └── NotConnected             nothing was sent
    │   ├── UpstreamDenied               upstream_denied
    │   ├── UpstreamReadFailed           upstream_read_failed
    │   └── UpstreamMalformed            upstream_malformed_response
    ├── DeadlineExceeded            504  deadline_exceeded
    ├── Unavailable                 503  api_error, service_unavailable, Retry-After
    │   ├── NoHealthyNode                Retry-After 5
    │   │   └── NoOtherReplica           inside the gateway only
    │   ├── LoadFailed                   Retry-After 5          (kind, …)
    │   ├── ModelRecovering              Retry-After 2
    │   ├── InsufficientVram             insufficient_vram, Retry-After 5
    │   ├── AnswersUnusable              the database of kept answers, Retry-After 5
    │   └── ShuttingDown                 shutting_down, Retry-After 15
    ├── Overloaded                  503  rate_limit_error, rate_limit_exceeded, Retry-After by queue length
    ├── RateLimited                 429  rate_limit_error, rate_limit_exceeded, Retry-After by what the key has used
    └── NeuronRefused                    a neuron's own error, carried over with its status, type, code and extras

Each dialect renders these through one table: `dialects/openai/errors.py` and `dialects/anthropic/errors.py`.
"""

# ruff: noqa: N818 -- the names say what happened; that they are errors is said by where they live
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class CortexError(Exception):
    """An error with a place in the table of docs/wire.md section 4. `extras` go beside `message` in the envelope."""

    status: int = 500
    type: str = "api_error"
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None

    def __init__(self, message: str, *, retry_after: int | None = None, **extras: Any) -> None:
        super().__init__(message)
        self.message = message
        self.extras = extras
        if retry_after is not None:
            self.retry_after = retry_after


class BadRequest(CortexError):
    """The request cannot be served as it was sent. `param` names the field at fault."""

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, **extras: Any) -> None:
        super().__init__(message, **extras)
        self.param = param


class MalformedJson(BadRequest):
    """The body is not JSON in UTF-8."""

    code = "malformed_json"


class InvalidBody(BadRequest):
    """The body is JSON of the wrong shape."""

    code = "invalid_request_body"


class Unauthorized(BadRequest):
    """No key, or one that is not accepted, where one is needed. Never says the key. `challenge`: for WWW-Authenticate.

    `shown`: there was a key. Source: RFC 6750 section 3.
    """

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str, *, shown: bool = False) -> None:
        super().__init__(message)
        self.challenge = 'Bearer realm="cortex"' + (', error="invalid_token"' if shown else "")


class Forbidden(BadRequest):
    """The key is accepted, but not for this."""

    status = 403
    code = "permission_denied"


class HostNotAllowed(BadRequest):
    """The gateway was called by a name that may be somebody else's, on a route that changes it. `known`: its own names."""

    status = 403
    code = "host_not_allowed"

    def __init__(self, name: str, known: Iterable[str] = ()) -> None:
        names = ", ".join(["localhost", "IP addresses", *map(repr, known)])
        super().__init__(
            f"The gateway is not known as {name!r} (the Host header): its control routes answer to {names}. "
            f'If that name is right, add it in cortex.toml: [gateway] hosts = ["{name}"].',
            param="host",
        )


class OriginNotAllowed(BadRequest):
    """A web page may not call this route. `origin`: in words. `control`: the route is one of those that change the gateway."""

    status = 403
    code = "origin_not_allowed"

    def __init__(self, origin: str, path: str, *, control: bool) -> None:
        allowed = (
            "the gateway's own pages and those"
            if control
            else "pages of this machine and of the gateway's host, installed programs, and pages"
        )
        super().__init__(
            f"Web pages of {origin} may not call {path}. It answers to {allowed} that cortex.toml names, "
            f'as [gateway] origins = ["https://chat.example.com"].',
            param="origin",
        )


class RouteNotFound(BadRequest):
    """No such path."""

    status = 404
    code = "not_found"


class RequestNotFound(BadRequest):
    """No request of that id is under way."""

    status = 404
    code = "request_not_found"


class ModelNotFound(BadRequest):
    """Nobody knows the model. `nearest`: the known ids that look most alike; `present`: one that could answer instead.

    Clients that can only ask for claude-* are told how such a name is given to a model.
    """

    status = 404
    code = "model_not_found"

    def __init__(self, model: str, *, nearest: Iterable[str] = (), present: str | None = None) -> None:
        near = list(nearest)
        hint = f" Did you mean {', '.join(repr(name) for name in near)}?" if near else ""
        if model.startswith("claude-"):
            names = f'"{model}" = "{present or "<id of a model>"}"'
            hint += f" To answer to this name, add an alias in models.toml: [aliases] {names}"
        super().__init__(f"The model {model!r} does not exist.{hint}", param="model", nearest=near)


class MethodNotAllowed(BadRequest):
    """The path exists, the method does not. `allow`: what it takes."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, method: str, path: str, *, allow: Iterable[str] = ()) -> None:
        self.allow = tuple(allow)
        taken = f" It takes {', '.join(self.allow)}." if self.allow else ""
        super().__init__(f"{path} does not take {method}.{taken}")


class UpgradeRefused(BadRequest):
    """A client offers to go on in another protocol where there is nothing without it. Source: RFC 9110 section 15.5.22."""

    status = 426
    code = "no_websocket"


class RequestTimeout(BadRequest):
    """The client began a body and stopped sending."""

    status = 408
    code = "request_timeout"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Nothing more of the request's body came for {seconds:g} s.")


class Cancelled(BadRequest):
    """An operator has ended the request. Clients do not send it again by themselves."""

    status = 499
    code = "request_cancelled"


class AlreadyLoaded(BadRequest):
    """The model is loaded, but not as the operator asks for it. `differs`: option -> {loaded, asked}."""

    status = 409
    code = "already_loaded"


class BodyTooLarge(BadRequest):
    """The body is over the size cap, in bytes."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The request body is larger than {limit_bytes} bytes.", limit_bytes=limit_bytes)


class UnsupportedMedia(BadRequest):
    """A content type or content encoding that is not taken."""

    status = 415
    code = "unsupported_media_type"


class UpstreamError(CortexError):
    """The neuron that was chosen did not answer as agreed."""

    status = 502


class UpstreamUnreachable(UpstreamError):
    """No connection, or one that ended before a byte of the answer."""

    code = "upstream_connection_error"


class NotConnected(UpstreamUnreachable):
    """No connection: the neuron has seen nothing of the request."""


class UpstreamDenied(UpstreamError):
    """The neuron does not let this gateway in: no secret, or another one."""

    code = "upstream_denied"


class UpstreamReadFailed(UpstreamError):
    """The answer began and did not end."""

    code = "upstream_read_failed"


class UpstreamMalformed(UpstreamError):
    """The answer is not what the wire says. `answered`: its HTTP status, where it had one."""

    code = "upstream_malformed_response"

    def __init__(self, message: str, *, answered: int | None = None) -> None:
        super().__init__(message)
        self.answered = answered


class DeadlineExceeded(CortexError):
    """The answer is not there in the time that the client has given."""

    status = 504
    code = "deadline_exceeded"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"The request has taken longer than {seconds:g} s, as its header x-request-timeout allows.")


class Unavailable(CortexError):
    """Not now; `retry_after` seconds from now perhaps."""

    status = 503
    code = "service_unavailable"


class NoHealthyNode(Unavailable):
    """No node that could serve the model is up."""

    retry_after = 5


class NoOtherReplica(NoHealthyNode):
    """Nobody but those that have failed the request already. Clients are told of that failure instead."""


class LoadFailed(Unavailable):
    """A cold load ended badly. Extras carry the neuron's `kind` and details."""

    retry_after = 5


class ModelRecovering(Unavailable):
    """The model's engine is being restarted."""

    retry_after = 2


class InsufficientVram(Unavailable):
    """No node has, or can make, room for the model."""

    code = "insufficient_vram"
    retry_after = 5


class AnswersUnusable(Unavailable):
    """What was kept cannot be read, or not be kept. The message says where and why."""

    retry_after = 5


class ShuttingDown(Unavailable):
    """The gateway is going down."""

    code = "shutting_down"
    retry_after = 15


class Overloaded(CortexError):
    """A queue is full, or the wait was too long. `retry_after` as docs/wire.md section 4 computes it."""

    status = 503
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    MAX_RETRY_AFTER: ClassVar[int] = 120

    def __init__(self, message: str, *, queued: int) -> None:
        super().__init__(message, retry_after=min(max(2 * (queued + 1), 1), self.MAX_RETRY_AFTER))


class RateLimited(CortexError):
    """A key has used what it may use. `retry_after` seconds from now it may again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class NeuronRefused(CortexError):
    """An error envelope that a neuron answered with, kept as it was."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str = "api_error",  # noqa: A002 -- the wire's own name
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        extras: Mapping[str, Any],
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.extras = dict(extras)
        self.status, self.type, self.code, self.param = status, type, code, param
