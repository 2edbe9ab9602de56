"""One HTTP request from its first byte to its record: who may, how it fails, what is counted; knows no route's work."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

import msgspec
from attrs import define, evolve, frozen
from litestar import HttpMethod, Request
from litestar import route as litestar_route
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from cortex_gateway.auth import policy
from cortex_gateway.auth.guard import AdmittedRequest
from cortex_gateway.auth.principal import Principal
from cortex_gateway.context import RequestContext, session, timeout_secs
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.errors import Cancelled, DeadlineExceeded, ShuttingDown
from cortex_gateway.routes.failures import report
from cortex_gateway.routes.gateway import Gateway
from cortex_gateway.routes.live import Live
from cortex_gateway.routes.record import Record
from cortex_gateway.stream import Client, ClientGoneError

Method = Literal["GET", "POST", "DELETE"]


@frozen
class Exchange:
    """One request on its way."""

    gateway: Gateway
    client: Client
    record: Record
    context: RequestContext
    path_params: dict[str, Any]
    query: Mapping[str, str]

    def check_model(self, model: str) -> None:
        """Raises Forbidden where who sent it may not use the model."""
        policy.check_model(self.context.principal, model, self.gateway.fleet.resolve)

    def of_conversation(self, affinity: str | None) -> Self:
        """The same, of this conversation where its headers name none."""
        if affinity is None or self.context.affinity is not None:
            return self
        return evolve(self, context=evolve(self.context, affinity=affinity))

    def outlives_client(self) -> None:
        """From now on it is one request as before, whether or not anybody waits for its answer."""
        self.client.before_end = None
        self.client.may_leave = True

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
        metered: whether a key's limits count it.
        json_only: as that of the dialect; off where no body is read into anything.
    """

    method: Method
    path: str
    work: Callable[[Exchange, bytes], Awaitable[None]]
    need: policy.AcceptedScopes | None
    label: str | None = None
    metered: bool = True
    json_only: bool = True

    def handler(self) -> HTTPRouteHandler:
        """As the framework takes it. HEAD is asked where GET is."""
        methods = [HttpMethod.GET, HttpMethod.HEAD] if self.method == "GET" else [HttpMethod[self.method]]

        async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
            return exchange(Gateway.of(request.app.state), self)

        return litestar_route(self.path, http_method=methods, status_code=200)(handle)


def exchange(gateway: Gateway, route: Route) -> ASGIApp:
    """An ASGI app for one request: the route's work, every failure told in the dialect of its path."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        http: HTTPScope = scope  # type: ignore[assignment]  # only HTTP handlers return this app
        dialect = gateway.spoken(http["path"])
        json_only = dialect.json_only and route.json_only
        client = Client(http, receive, send, stream_type=dialect.stream_type, json_only=json_only)
        record = Record(route.label or "", client.request_id)
        handler = _Handler(gateway, route, client, record)
        try:
            await handler.pass_through(http)
        except ClientGoneError:
            record.outcome = "cancelled"
        except Exception as error:  # noqa: BLE001 -- the last place where the client can still be told
            record.failed(await report(client, error, dialect))
        except asyncio.CancelledError:  # else the server stops, and has waited long enough for this one
            if handler.cancelled_by_operator():
                await report(client, Cancelled("The request was cancelled by an operator."), dialect)
                record.outcome = "cancelled"
                return
            record.failed(await report(client, ShuttingDown("The gateway is going down."), dialect))
            raise
        finally:
            handler.close()

    return app


@define
class _Handler:
    """Lets a request in, and counts it when it has ended."""

    gateway: Gateway
    route: Route
    client: Client
    record: Record
    _admission: AdmittedRequest | None = None
    _live: Live | None = None

    async def pass_through(self, http: HTTPScope) -> None:
        """Nobody's body is read before it is known that he may."""
        context = self._context(self._admit(http))
        query = dict(parse_qsl(http["query_string"].decode("latin-1")))
        it = Exchange(self.gateway, self.client, self.record, context, http.get("path_params") or {}, query)
        if self.route.label is not None:
            self._live = Live(context, self.record)
            self.gateway.live.enter(self._live)
        async with _ended_after(context.timeout_secs):
            body = await self._body()
            async with self.client.connected():
                await self.route.work(it, body)

    def cancelled_by_operator(self) -> bool:
        """Asked once a cancellation has come: whether it was his alone, and so ends with this request."""
        task = asyncio.current_task()
        assert task is not None
        return self._live is not None and self._live.cancelled and task.uncancel() == 0

    def close(self) -> None:
        """However it has ended."""
        self._leave()
        if self._live is not None:
            self.gateway.live.leave(self._live)
        if self.route.label is not None:
            self.gateway.metrics.observe_request(self.record.finish(self.client.status))

    def _admit(self, http: HTTPScope) -> Principal:
        if self.route.need is None:
            return policy.NOBODY
        if not self.route.metered:
            return self.gateway.guard.identify(http, self.route.need)
        self._admission = self.gateway.guard.admit(http, self.route.need)
        self.client.before_end = self._leave
        return self._admission.principal

    def _context(self, principal: Principal) -> RequestContext:
        headers = self.client.headers
        return RequestContext(
            id=self.client.request_id,
            principal=principal,
            affinity=session(headers),
            timeout_secs=timeout_secs(headers),
        )

    async def _body(self) -> bytes:
        if self.route.method != "POST":
            return b""
        try:
            return await self.client.body(self.gateway.max_body_bytes, self.gateway.body_silence_secs)
        except asyncio.CancelledError:  # its time is over, or an operator ends it: nobody reads the rest
            self.client.broken_off = True
            raise

    def _leave(self) -> None:
        if self._admission is not None:
            self._admission.end(self.record.tokens)


@contextlib.asynccontextmanager
async def _ended_after(seconds: float | None) -> AsyncIterator[None]:
    """Raises DeadlineExceeded where the block takes longer."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(seconds or 0.0) from None
