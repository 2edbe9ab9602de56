"""Every exception as a neutral failure, and the two ways to spell one; the one place where both are known."""

import logging
from collections.abc import Callable

from attrs import frozen
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException

from cortex_gateway.dialects import openai_errors, sse
from cortex_gateway.dialects.anthropic import errors as anthropic_errors
from cortex_gateway.dialects.anthropic.stream import PING
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.errors import BadRequest, CortexError, MethodNotAllowed, NeuronRefused, RouteNotFound, Unauthorized
from cortex_gateway.stream import JSON_HEADERS, Client, Header

LOG = logging.getLogger("cortex.gateway")
INTERNAL = Failure(500, "api_error", None, "The gateway failed on this request. Its log says why.")


@frozen
class Spelling:
    """How one dialect says that something failed, or that nothing has happened yet.

    Attributes:
        body: (failure, request id) -> the body of an HTTP answer.
        event: (failure, request id) -> the last event of a stream.
        beat: what keeps a silent stream alive.
    """

    body: Callable[[Failure, str], bytes]
    event: Callable[[Failure, str], bytes]
    beat: bytes


OPENAI = Spelling(
    body=lambda failure, _: openai_errors.body(failure),
    event=lambda failure, _: openai_errors.event(failure),
    beat=sse.COMMENT,
)
ANTHROPIC = Spelling(body=anthropic_errors.body, event=anthropic_errors.event, beat=PING)


def spelling(path: str) -> Spelling:
    """The dialect that a path is spoken in, also one that does not exist."""
    return ANTHROPIC if path == "/v1/messages" or path.startswith("/v1/messages/") else OPENAI


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
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", error.challenge.encode()))
    return headers


async def report(client: Client, error: Exception, spelling: Spelling) -> Failure:
    """Tell the client: with a status of its own while that is possible, else as the stream's last event."""
    failure = failure_of(error)
    if failure is INTERNAL:
        LOG.error("request %s failed", client.request_id, exc_info=error)
    if client.ended:
        return failure
    if client.started:
        await client.end(spelling.event(failure, client.request_id))
    else:
        await client.answer(failure.status, spelling.body(failure, client.request_id), headers_of(error, failure))
    return failure
