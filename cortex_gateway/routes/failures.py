"""Every exception as a neutral failure, and how a client is told of it; knows no dialect by name."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from litestar import Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.dialects.table import spoken
from cortex_gateway.errors import (
    BadRequest,
    CortexError,
    MethodNotAllowed,
    NeuronRefused,
    RouteNotFound,
    Unauthorized,
    UpgradeRefused,
)
from cortex_gateway.stream import JSON_HEADERS, Client, Header, request_id

LOG = logging.getLogger("cortex.gateway")
INTERNAL = Failure(500, "api_error", None, "The gateway failed on this request. Its log says why.")


def failure_of(error: BaseException) -> Failure:
    """What went wrong in neutral terms. Anything unforeseen is a 500 that tells the client nothing else."""
    if isinstance(error, RefusedError):
        return error.failure
    if isinstance(error, CortexError):
        return Failure(
            error.status, error.type, error.code, error.message, error.param, error.retry_after, error.extras
        )
    return INTERNAL


def refusal(failure: Failure) -> CortexError:
    """A neuron's failure as an exception."""
    return NeuronRefused(
        failure.message,
        status=failure.status,
        type=failure.type,
        code=failure.code,
        param=failure.param,
        retry_after=failure.retry_after,
        extras=failure.extras,
    )


def of_framework(error: HTTPException, method: str, path: str) -> CortexError:
    """Litestar's own refusals, which all come before a handler runs."""
    if isinstance(error, NotFoundException):
        return RouteNotFound(f"There is no {path} here.")
    if isinstance(error, MethodNotAllowedException):
        allow = (error.headers or {}).get("allow", "").split(", ")
        return MethodNotAllowed(method, path, allow=filter(None, allow))
    return BadRequest(error.detail)


def headers_of(error: BaseException, failure: Failure) -> list[Header]:
    """The headers that go with a failure's answer."""
    headers = list(JSON_HEADERS)
    if failure.retry_after is not None:
        headers.append((b"retry-after", b"%d" % failure.retry_after))
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers.append((b"allow", ", ".join(error.allow).encode()))
    if isinstance(error, UpgradeRefused):
        headers.append((b"upgrade", b"HTTP/1.1"))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", error.challenge.encode()))
    return headers


@frozen
class ErrorAnswer:
    """An error as an HTTP answer; `failure.status` is its status."""

    failure: Failure
    headers: list[Header]
    body: bytes


def error_answer(error: BaseException, dialect: Dialect, identity: str) -> ErrorAnswer:
    """What a client is told of `error`, and the log where the fault is ours. `identity`: the request's id."""
    failure = failure_of(error)
    if failure is INTERNAL:
        LOG.error("request %s failed", identity, exc_info=error)
    return ErrorAnswer(failure, headers_of(error, failure), dialect.error(failure, identity))


async def report(client: Client, error: BaseException, dialect: Dialect) -> Failure:
    """Tell the client: with a status of its own while that is possible, else as the stream's last event.

    Within a body whose length was told nothing can be said: it ends short, and the server hangs up.
    """
    answer = error_answer(error, dialect, client.request_id)
    failure = answer.failure
    if not client.started:
        await client.answer(failure.status, answer.body, answer.headers)
    elif client.fail is not None and not client.ended:
        await client.end(client.fail(failure))
    return failure


def refuse(request: Request[Any, Any, Any], error: Exception, *, dialects: Sequence[Dialect]) -> Response[bytes]:
    """The handler of every exception that reaches the framework, its own 404 and 405 included."""
    path = request.scope["path"]
    if isinstance(error, MethodNotAllowedException) and _offers_socket(request.headers):
        error = UpgradeRefused(
            "There are no WebSockets here: POST the request, its answer streams as server-sent events."
        )
    elif isinstance(error, HTTPException):
        error = of_framework(error, request.method, path)
    identity = request_id(request.headers)
    answer = error_answer(error, spoken(dialects, path), identity)
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(
        answer.body,
        status_code=answer.failure.status,
        headers={**headers, "x-request-id": identity},
        media_type="application/json",
    )


def _offers_socket(headers: Mapping[str, str]) -> bool:
    """Whether it would rather be a WebSocket; `connection` gives the header another name before it comes here."""
    return any(headers.get(name, "").strip().lower() == "websocket" for name in ("upgrade", "x-upgrade"))
