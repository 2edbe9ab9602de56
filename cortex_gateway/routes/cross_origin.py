"""CORS around the whole app: asks `origins` of every request, answers preflights and refusals itself. Knows ASGI headers.

Litestar's own CORS only adds headers: a page could not read an answer and its request was obeyed all the same.
"""

import re
from collections.abc import Sequence
from typing import Any

from attrs import frozen
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.table import spoken
from cortex_gateway.errors import BadRequest
from cortex_gateway.origins import OriginPolicy, RequestOrigin
from cortex_gateway.routes.failures import report
from cortex_gateway.stream import Client, Header

METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"
READABLE = b"retry-after, x-request-id"  # the headers of an answer that a page may read besides the usual ones
PREFLIGHT_SECS = b"600"
_HEADER_NAMES = re.compile(rb"[\w!#$%&'*+.^`|~, -]*")


@frozen
class CrossOrigin:
    """ASGI middleware. What `policy` refuses never reaches `app`."""

    app: ASGIApp
    policy: OriginPolicy
    dialects: Sequence[Dialect]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http: Any = scope
        if http["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = http["headers"]
        try:
            allowed = self.policy.check(_asked(http["path"], headers))
        except BadRequest as error:
            await report(Client(http, receive, send), error, spoken(self.dialects, http["path"]))
            return
        if allowed is None:
            await self.app(scope, receive, send)
        elif http["method"] == "OPTIONS" and (names := _preflight(headers)) is not None:
            told = [*_told(allowed), *_may(names, headers)]
            await send({"type": "http.response.start", "status": 204, "headers": told})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self.app(scope, receive, _telling(allowed, send))


def _asked(path: str, headers: list[Header]) -> RequestOrigin:
    found: dict[bytes, list[str]] = {b"host": [], b"origin": [], b"sec-fetch-site": []}
    for name, value in headers:
        if name in found:
            found[name].append(value.decode("latin-1"))
    origins, sites = found[b"origin"], found[b"sec-fetch-site"]
    return RequestOrigin(
        path=path,
        hosts=tuple(found[b"host"]),
        origin=", ".join(origins) if origins else None,  # two of them are an origin that nobody has
        site=sites[0] if sites else None,
    )


def _preflight(headers: list[Header]) -> bytes | None:
    """The headers that a page would like to send; None where this is no preflight."""
    sent = dict(headers)
    return sent.get(b"access-control-request-headers", b"") if b"access-control-request-method" in sent else None


def _told(allowed: str) -> list[Header]:
    return [
        (b"access-control-allow-origin", allowed.encode("latin-1")),
        (b"access-control-expose-headers", READABLE),
        (b"vary", b"origin"),
    ]


def _may(names: bytes, headers: list[Header]) -> list[Header]:
    """Every header that was asked for: which of them mean anything is the routes' matter."""
    told = [(b"access-control-allow-methods", METHODS), (b"access-control-max-age", PREFLIGHT_SECS)]
    if names and _HEADER_NAMES.fullmatch(names):
        told.append((b"access-control-allow-headers", names))
    if (b"access-control-request-private-network", b"true") in headers:
        told.append((b"access-control-allow-private-network", b"true"))
    return told


def _telling(allowed: str, send: Send) -> Send:
    async def telling(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_told(allowed)]
        await send(message)

    return telling
