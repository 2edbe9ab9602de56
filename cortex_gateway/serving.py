"""The running gateway: sockets, the two listeners in one event loop, draining at the end. Knows no dialect and no route."""

import asyncio
import contextlib
import errno
import functools
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from attrs import define, field, frozen

from cortex_gateway.access import AccessLog
from cortex_gateway.app import create_app
from cortex_gateway.auth import policy
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config
from cortex_gateway.connection import KEEP_SECS, ClientConnection, IdleTimeouts
from cortex_gateway.errors import Forbidden, Unauthorized
from cortex_gateway.fleet.credentials import contexts
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from cortex_gateway.routes.gateway import Reread
from cortex_gateway.transport import NeuronTransport
from neuron_jax.common.addresses import Address, is_every_ipv6, parse_address
from neuron_jax.common.errors import UserError
from neuron_jax.common.service_manager import READY, STOPPING, service_manager
from neuron_jax.common.tls import server_context

log = logging.getLogger(__name__)
BACKLOG = 2048
Asgi = Callable[[Any, Any, Any], Awaitable[None]]
METRICS_DRAIN_SECS = 1
LAST_WORD_SECS = 0.5
"""A client gets this long to take the error that ends its answer, before a hurried server hangs up."""


class ListenError(UserError):
    """An address cannot be listened on. The message names the address and the setting that moves it."""


class Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to us: two of them share one loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def hurry(self) -> None:
        """Cut the drain short: running requests end with an error now, and who does not take it is hung up on."""
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(LAST_WORD_SECS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


@frozen(kw_only=True)
class Listeners:
    """Two listening sockets, ours to close until a server has them."""

    api: socket.socket
    metrics: socket.socket


@frozen
class Stop:
    """What the user asked by signals: to end, and then not to wait for it."""

    asked: asyncio.Event = field(factory=asyncio.Event)
    hurry: asyncio.Event = field(factory=asyncio.Event)

    def signal(self) -> None:
        """One more signal came."""
        (self.hurry if self.asked.is_set() else self.asked).set()


@define
class Running:
    """A gateway that answers."""

    fleet: Fleet
    metrics: Metrics
    url: str  # http://host:port of the API
    metrics_url: str
    notices: tuple[str, ...] = ()  # what the operator should hear


def listen(address: str, setting: str) -> socket.socket:
    """Bind host:port; `[::]` takes IPv4 as well. Raises ListenError that names `setting`, where another may be set."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = is_every_ipv6(host) and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reasons = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "may not be used without privileges"}
        why = reasons.get(error.errno or 0, f"cannot be used: {error.strerror or error}")
        raise ListenError(f"port {port} on {host} {why}; choose another with {setting}") from error


def bind(
    config: Config, *, api_setting: str = "[gateway] listen", metrics_setting: str = "[gateway] metrics_listen"
) -> Listeners:
    """Both sockets or none."""
    api = listen(config.gateway.listen, api_setting)
    try:
        return Listeners(api=api, metrics=listen(config.gateway.metrics_listen, metrics_setting))
    except ListenError:
        api.close()
        raise


@contextlib.asynccontextmanager
async def running(
    config: Config, listeners: Listeners, *, hurry: asyncio.Event | None = None, reread: Reread | None = None
) -> AsyncIterator[Running]:
    """The gateway, from the moment when it answers until the block ends; then it drains and closes everything.

    `hurry` ends the drain, `reread` reads the operator's files again. Raises StoreError where the keys cannot be read.
    """
    guard = Guard(required=bool(config.auth.required))
    async with guard.following(config.state), _answering(config, listeners, guard, hurry, reread) as it:
        yield it


@contextlib.asynccontextmanager
async def _answering(
    config: Config, listeners: Listeners, guard: Guard, hurry: asyncio.Event | None, reread: Reread | None
) -> AsyncIterator[Running]:
    metrics = Metrics()
    fleet = Fleet(config, metrics, transport=NeuronTransport(contexts(config.neurons)))
    it = config.gateway
    timeouts = IdleTimeouts(read_secs=it.read_timeout_secs, write_secs=it.write_timeout_secs)
    drain_secs = max(1, round(it.drain_secs))
    tls = server_context(it.tls_cert, it.tls_key) if it.tls_cert else None
    metrics_tls = tls if it.metrics_tls else None
    app = AccessLog(create_app(fleet, metrics, config, guard, reread=reread), metrics)
    api = _server(app, timeouts, drain_secs, tls, lifespan=True)
    page = metrics_app(metrics, guard if config.auth.metrics else None)
    scrape = _server(page, timeouts, METRICS_DRAIN_SECS, metrics_tls, lifespan=False)
    tasks = [
        asyncio.create_task(api.serve([listeners.api]), name="api listener"),
        asyncio.create_task(scrape.serve([listeners.metrics]), name="metrics listener"),
    ]
    url, metrics_url = _url(listeners.api, tls), _url(listeners.metrics, metrics_tls)
    notices = policy.notices(config.gateway.listen, config.auth.required, guard.usable)
    try:
        await _started(tasks, [api, scrape])
        yield Running(fleet, metrics, url, metrics_url, notices)
    finally:
        fleet.drain()
        api.should_exit = scrape.should_exit = True
        await _drained(tasks, api, hurry or asyncio.Event())
        await fleet.close()


async def serve(config: Config, reread: Reread) -> None:
    """Until SIGINT or SIGTERM; then running requests get their time and everything closes."""
    listeners, manager = bind(config), service_manager(os.environ)
    with contextlib.closing(listeners.api), contextlib.closing(listeners.metrics), stop_signals() as stop:
        async with running(config, listeners, hurry=stop.hurry, reread=reread) as gateway:
            log.info("cortex answers at %s, metrics at %s/metrics", gateway.url, gateway.metrics_url)
            for notice in gateway.notices:
                log.warning("%s", notice)
            gc.collect()
            gc.freeze()  # what is there now stays: no search for garbage goes through it again
            manager.tell(READY)
            alive = asyncio.create_task(manager.signs_of_life(), name="signs of life")
            await stop.asked.wait()
            manager.tell(STOPPING)
            alive.cancel()
            log.info(
                "stopping: running requests get %.0f s; a second Ctrl-C does not wait for them",
                config.gateway.drain_secs,
            )


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """What SIGINT, SIGTERM and SIGHUP set instead of what they do by themselves."""
    stop = Stop()
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in caught:
        loop.add_signal_handler(number, stop.signal)
    try:
        yield stop
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def metrics_app(metrics: Metrics, guard: Guard | None = None) -> Asgi:
    """GET /metrics, and nothing else; with a `guard` for keys of scope admin only."""

    async def app(scope: dict[str, Any], _: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        status, body, headers = _metrics_page(metrics, guard, scope)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body, "more_body": False}
        )

    return app


def _metrics_page(
    metrics: Metrics, guard: Guard | None, scope: dict[str, Any]
) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, body and headers."""
    plain = [(b"content-type", b"text/plain; charset=utf-8")]
    try:
        if guard:
            guard.identify(scope, policy.ADMIN, asked=True)
    except Unauthorized as error:
        return error.status, f"{error}\n".encode(), [*plain, (b"www-authenticate", error.challenge.encode())]
    except Forbidden as error:
        return error.status, f"{error}\n".encode(), plain
    if scope["path"] != "/metrics" or scope["method"] not in ("GET", "HEAD"):
        return 404, b"metrics are at /metrics\n", plain
    accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
    body, content_type = metrics.render(accept)
    return 200, body, [(b"content-type", content_type.encode())]


def _server(
    app: Asgi, timeouts: IdleTimeouts, drain_secs: int, tls: ssl.SSLContext | None, *, lifespan: bool
) -> Server:
    connection: Any = functools.partial(ClientConnection, timeouts)  # to uvicorn a class, which it only calls
    settings = uvicorn.Config(
        _told_to_end(app),
        http=connection,
        ws="none",
        lifespan="on" if lifespan else "off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_SECS,
        proxy_headers=False,  # who is at the other end of the connection decides what he may, whatever he says
        timeout_graceful_shutdown=drain_secs,
    )
    settings.load()
    settings.ssl = tls  # by itself uvicorn makes its own from files, and asks the terminal for the passphrase of a key
    return Server(settings)


def _told_to_end(app: Asgi) -> Asgi:
    """The server cancels a request only when its time is over; the route has told the client and the log so by then."""

    async def ended(scope: dict[str, Any], receive: Any, send: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return ended


async def _started(tasks: list[asyncio.Task[None]], servers: list[Server]) -> None:
    """Both answer; or the error of the one that could not start."""
    while not all(server.started for server in servers):
        done, _ = await asyncio.wait(tasks, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise ListenError("the gateway could not start; the log above says why")


async def _drained(tasks: list[asyncio.Task[None]], api: Server, hurry: asyncio.Event) -> None:
    """Both have ended by themselves, or in a hurry."""

    async def hurried() -> None:
        await hurry.wait()
        await api.hurry()

    hurrying = asyncio.create_task(hurried(), name="hurry")
    try:
        await asyncio.gather(*tasks)
    finally:
        hurrying.cancel()


def _url(listener: socket.socket, tls: ssl.SSLContext | None) -> str:
    return f"{'https' if tls else 'http'}://{Address(*listener.getsockname()[:2])}"
