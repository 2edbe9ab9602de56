"""A gateway and its neurons on real ports in a thread of their own, for tests that are themselves blocking programs."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import uvicorn
from attrs import frozen

from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.serving import Server, bind, running

T = TypeVar("T")


@frozen
class LiveGateway:
    """Where it answers."""

    url: str
    metrics_url: str


@contextlib.contextmanager
def live_gateway(
    hosts: Mapping[str, Any], settings: Mapping[str, Any] | None = None, **more: Any
) -> Iterator[LiveGateway]:
    """`hosts`: node name -> ASGI app of its neuron, or the URL of one that runs. `settings` are those of [gateway].

    Everything has ended when the block has.
    """
    with in_thread(_gateway(hosts, settings or {}, **more)) as it:
        yield it


@contextlib.contextmanager
def in_thread(context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """What `context` gives, while it is open in an event loop of its own."""
    began: list[T] = []
    ready, done = threading.Event(), threading.Event()

    async def main() -> None:
        async with context as it:
            began.append(it)
            ready.set()
            await asyncio.to_thread(done.wait)

    def work() -> None:
        try:
            asyncio.run(main())
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        ready.wait()
        yield began[0]
    finally:
        done.set()
        thread.join()


@contextlib.asynccontextmanager
async def _gateway(hosts: Mapping[str, Any], settings: Mapping[str, Any], **more: Any) -> AsyncIterator[LiveGateway]:
    async with contextlib.AsyncExitStack() as stack:
        endpoints = {
            name: app if isinstance(app, str) else await stack.enter_async_context(served(app))
            for name, app in hosts.items()
        }
        neurons = tuple(Neuron(name=name, endpoint=url) for name, url in endpoints.items())
        usual = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "watch_secs": 0.05, "drain_secs": 0}
        config = Config(gateway=GatewayConfig(**usual | settings), neurons=neurons, **more)
        it = await stack.enter_async_context(running(config, bind(config)))
        yield LiveGateway(it.url, it.metrics_url)


@contextlib.asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """The URL of an ASGI app on a free port."""
    settings = uvicorn.Config(app, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = Server(settings)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), "it ended at start"
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
