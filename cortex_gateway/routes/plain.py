"""Answers that are one JSON object, and errors that come before or outside a dialect's own routes; knows no fleet."""

from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from cortex_gateway.routes.failures import INTERNAL, LOG, failure_of, headers_of, of_framework, spelling
from cortex_gateway.stream import request_id


def plain(request: Request[Any, Any, Any], value: object) -> Response[bytes]:
    """`value` as JSON."""
    return _response(msgspec.json.encode(value), 200, {"x-request-id": request_id(request.headers)})


def refuse(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The handler of every exception that reaches the framework, its own 404 and 405 included."""
    path = request.scope["path"]
    if isinstance(error, HTTPException):
        error = of_framework(error, request.method, path)
    failure = failure_of(error)
    identity = request_id(request.headers)
    if failure is INTERNAL:
        LOG.error("request %s failed", identity, exc_info=error)
    headers = {name.decode(): value.decode() for name, value in headers_of(error, failure)}
    body = spelling(path).body(failure, identity)
    return _response(body, failure.status, {**headers, "x-request-id": identity})


def _response(body: bytes, status: int, headers: dict[str, str]) -> Response[bytes]:
    return Response(body, status_code=status, headers=headers, media_type="application/json")
