"""One HTTP request from its first byte to its record: who may, how it fails, what is counted; knows no route's work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import msgspec
from attrs import define, frozen
from litestar import HttpMethod, Request
from litestar import route as litestar_route
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from cortex_gateway.auth import policy
from cortex_gateway.auth.guard import Admission
from cortex_gateway.auth.principal import Principal
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.errors import ShuttingDown
from cortex_gateway.routes.failures import report
from cortex_gateway.routes.gateway import Gateway, Record
from cortex_gateway.stream import Client, ClientGoneError

Method = Literal["GET", "POST"]


@frozen
class Exchange:
    """One request on its way. `principal` is who sent it; his key goes no further than here."""

    gateway: Gateway
    client: Client
    record: Record
    principal: Principal
    path_params: dict[str, Any]

    def check_model(self, model: str) -> None:
        """Raises Forbidden where who sent it may not use the model."""
        policy.check_model(self.principal, model, self.gateway.fleet.resolve)

    async def answer(self, value: object) -> None:
        """`value` as JSON, with status 200."""
        await self.client.answer(200, msgspec.json.encode(value))

    @contextlib.asynccontextmanager
    async def streaming(self, keep_alive: Callable[[], bytes], fail: Callable[[Failure], bytes]) -> AsyncIterator[None]:
        """Within the block the client is not left in silence, and a failure of what has begun is told by `fail`."""
        self.client.fail = fail
        async with self.client.kept_alive(keep_alive, self.gateway.keep_alive_seconds):
            yield


@frozen
class Route:
    """A row of the gateway's table of routes.

    Attributes:
        work: (the exchange, the request's body) -> the client is answered. Whatever it raises is told to the client.
        need: the scopes of which a key must have one; None: whoever asks.
        label: what metrics call requests on it; None for what generates nothing and is not counted.
    """

    method: Method
    path: str
    work: Callable[[Exchange, bytes], Awaitable[None]]
    need: policy.Need | None
    label: str | None = None

    def handler(self) -> HTTPRouteHandler:
        """As the framework takes it. HEAD is asked where GET is."""
        methods = [HttpMethod.GET, HttpMethod.HEAD] if self.method == "GET" else [HttpMethod.POST]

        async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
            return exchange(Gateway.of(request.app.state), self)

        return litestar_route(self.path, http_method=methods)(handle)


def exchange(gateway: Gateway, route: Route) -> ASGIApp:
    """An ASGI app for one request: the route's work, every failure told in the dialect of its path."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        http: HTTPScope = scope  # type: ignore[assignment]  # only HTTP handlers return this app
        dialect = gateway.spoken(http["path"])
        client, record = Client(http, receive, send, stream_type=dialect.stream_type), Record(route.label or "")
        door = _Door(gateway, route, client, record)
        try:
            await door.pass_through(http)
        except ClientGoneError:
            record.outcome = "cancelled"
        except Exception as error:  # noqa: BLE001 -- the last place where the client can still be told
            record.failed(await report(client, error, dialect))
        except asyncio.CancelledError:  # the server stops, and has waited long enough for this one
            record.failed(await report(client, ShuttingDown("The gateway is going down."), dialect))
            raise
        finally:
            door.close()

    return app


@define
class _Door:
    """Lets a request in, and counts it when it has ended."""

    gateway: Gateway
    route: Route
    client: Client
    record: Record
    _admission: Admission | None = None

    async def pass_through(self, http: HTTPScope) -> None:
        """Nobody's body is read before it is known that he may."""
        principal = self._admit(http)
        body = await self._body()
        it = Exchange(self.gateway, self.client, self.record, principal, http.get("path_params") or {})
        async with self.client.connected():
            await self.route.work(it, body)

    def close(self) -> None:
        """However it has ended."""
        self._leave()
        if self.route.label is not None:
            self.gateway.metrics.observe_request(self.record.finish(self.client.status))

    def _admit(self, http: HTTPScope) -> Principal:
        if self.route.need is None:
            return policy.NOBODY
        self._admission = self.gateway.guard.admit(http, self.route.need)
        self.client.before_end = self._leave
        return self._admission.principal

    async def _body(self) -> bytes:
        if self.route.method == "GET":
            return b""
        return await self.client.body(self.gateway.max_body_bytes, self.gateway.body_silence_secs)

    def _leave(self) -> None:
        if self._admission is not None:
            self._admission.end(self.record.tokens)
