"""The daemon's only wiring: config and hardware in, a Litestar app or a running server out."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from traceback import clear_frames
from typing import Any

import attrs
import uvicorn
import uvloop
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.types import Message, Scope

from neuron_jax.build_info import build_info
from neuron_jax.common.addresses import Address, is_every_ipv6
from neuron_jax.common.log_output import log_to_stderr
from neuron_jax.common.service_manager import READY, STOPPING, service_manager
from neuron_jax.common.tls import server_context
from neuron_jax.config import NeuronConfig, ServerConfig
from neuron_jax.daemon.access import AccessGuard, exposure
from neuron_jax.daemon.admission import AdmissionQueue
from neuron_jax.daemon.connection import CallerConnection
from neuron_jax.daemon.devices import Devices
from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.daemon.metrics import Metrics
from neuron_jax.daemon.problems import API, INVALID, Problem, internal, shutting_down
from neuron_jax.daemon.responses import problem_response
from neuron_jax.daemon.routes import ROUTES
from neuron_jax.daemon.service import NeuronServices
from neuron_jax.errors import ListenError
from neuron_jax.hardware.discover import Sampler, discover
from neuron_jax.workers.process import DEFAULT_COMMAND
from neuron_jax.workers.supervisor import RESTARTS, RestartPolicy

TEXT_THREADS = 2
BACKLOG = 2048
HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
REQUEST_ID = b"x-request-id"
_log = logging.getLogger("neuron.daemon")


def build_app(
    config: NeuronConfig,
    devices: Devices,
    *,
    command: Sequence[str] = DEFAULT_COMMAND,
    restarts: RestartPolicy = RESTARTS,
) -> Litestar:
    """The app; it loads nothing before its start-up, and its shutdown ends every engine. `command` runs an engine,
    `restarts` says when it runs again after a death."""
    metrics = Metrics()
    lifecycle = Lifecycle(config, devices, metrics, command=command, restarts=restarts)
    metrics.watch(lifecycle)
    pool = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="text")
    counting = AdmissionQueue(slots=TEXT_THREADS, **attrs.asdict(config.admission))
    neuron = NeuronServices(lifecycle, metrics, build_info(), pool, counting, time.monotonic())
    app = Litestar(
        route_handlers=list(ROUTES),
        guards=[AccessGuard.of(config).guard],
        lifespan=[partial(_lifespan, neuron)],
        exception_handlers={
            Problem: _on_problem,
            HTTPException: partial(_on_http, limit_bytes=config.server.max_body_mb << 20),
            Exception: _on_bug,
        },
        before_send=[_send_request_id],
        request_max_body_size=config.server.max_body_mb << 20,
        openapi_config=None,
        logging_config=None,
    )
    app.state.neuron = neuron
    return app


def serve(config: NeuronConfig, *, command: Sequence[str] = DEFAULT_COMMAND) -> None:
    """Serves until SIGTERM or SIGINT; returns when everything in flight has ended or had its time, and engines too.

    Raises ListenError before anything else is begun.
    """
    with listen(config.server) as listener:
        _serve_on(listener, config, command)


def listen(server: ServerConfig) -> socket.socket:
    """The socket of `[server]`; `::` takes IPv4 as well. Raises ListenError."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    both = is_every_ipv6(server.host) and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((server.host, server.port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reasons = {errno.EADDRINUSE: "is taken by another program", errno.EACCES: "may not be used without privileges"}
        why = reasons.get(error.errno or 0, f"cannot be used: {error.strerror or error}")
        raise ListenError(
            f"port {server.port} on {server.host} {why}; choose another with --port or port in [server]"
        ) from error


def _serve_on(listener: socket.socket, config: NeuronConfig, command: Sequence[str]) -> None:
    log_to_stderr("%(asctime)s %(levelname)s %(name)s: %(message)s", environ=config.environ)
    for noisy in ("httpx", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if warning := exposure(config):
        _log.warning(warning)
    hardware = discover(config.engine.cpu_devices, visible=config.environ.get("CUDA_VISIBLE_DEVICES"))
    with Sampler(hardware) as sampler, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        app = build_app(config, Devices(hardware, sampler), command=command)
        runner.run(_Server(app, config).serve([listener]))


class _Server(uvicorn.Server):
    """Uvicorn that says where it listens, and that takes a signal as the normal end: exit code 0."""

    def __init__(self, app: Litestar, config: NeuronConfig) -> None:
        self._lifecycle: Lifecycle = app.state.neuron.lifecycle
        self._giving_up: asyncio.Task[None] | None = None
        self._alive: asyncio.Task[None] | None = None
        self._manager = service_manager(config.environ)
        settings = uvicorn.Config(
            app,
            loop="none",
            http=CallerConnection,
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # who asks is who is connected: a header must not make it this host
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(config.server.drain_secs)),
        )
        settings.load()
        settings.ssl = tls_of(config.server)
        super().__init__(settings)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            address = Address(*self.servers[0].sockets[0].getsockname()[:2])
            scheme = "https" if self.config.ssl else "http"
            print(f"neuron ready {scheme}://{address}", flush=True)  # noqa: T201
            self._manager.tell(READY)
            self._alive = asyncio.create_task(self._manager.signs_of_life())

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        """The first signal drains; a second one does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._giving_up is None:
            _log.info("shutting down")
            self._manager.tell(STOPPING)
            self._giving_up = asyncio.create_task(self._lifecycle.refuse_new_work())


def tls_of(server: ServerConfig) -> ssl.SSLContext | None:
    """What the daemon listens with; None for plain HTTP. By itself uvicorn would ask the terminal for a key's passphrase."""
    return server_context(server.tls_cert, server.tls_key, server.tls_client_ca) if server.tls_cert else None


@contextlib.asynccontextmanager
async def _lifespan(neuron: NeuronServices, _: Litestar) -> AsyncIterator[None]:
    neuron.lifecycle.start()
    try:
        yield
    finally:
        await neuron.lifecycle.close()
        neuron.pool.shutdown(wait=False, cancel_futures=True)


def _on_problem(_: Request[Any, Any, Any], error: Problem) -> Response[bytes]:
    """The answer. The traceback holds all that was made of the request, and may live until the next collection."""
    clear_frames(error.__traceback__)
    return problem_response(error)


def _on_http(request: Request[Any, Any, Any], error: HTTPException, *, limit_bytes: int) -> Response[bytes]:
    """What Litestar itself refuses, in our envelope."""
    extras: dict[str, Any] = {"limit_bytes": limit_bytes} if error.status_code == 413 else {}
    message = {
        404: f"There is no route {request.url.path}.",
        405: f"{request.method} is not allowed on {request.url.path}.",
        413: f"The body is larger than {limit_bytes} bytes.",
    }.get(error.status_code, error.detail)
    kind = API if error.status_code >= 500 else INVALID
    code = HTTP_CODES.get(error.status_code, None if kind == API else "invalid_request_body")
    response = problem_response(Problem(error.status_code, code, message, kind=kind, **extras))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


def _on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    closing = request.app.state.neuron.lifecycle.closing
    return problem_response(shutting_down() if closing else internal())


async def _send_request_id(message: Message, scope: Scope) -> None:
    """Every answer carries the caller's x-request-id, or a new one."""
    if message["type"] == "http.response.start":
        sent = next((value for key, value in scope["headers"] if key == REQUEST_ID), b"")
        usable = sent if 0 < len(sent) <= 128 and sent.isascii() else uuid.uuid4().hex.encode()
        message["headers"] = [*message["headers"], (REQUEST_ID, usable)]
