"""Serves ASGI apps on real sockets in a thread of their own, for clients that bring their own network code."""

import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

App = Callable[[Any, Any, Any], Awaitable[None]]


@contextlib.contextmanager
def live(make: Callable[[], App]) -> Iterator[str]:
    """The app that `make` builds, answering at the URL given, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make(), http="httptools", loop="uvloop", lifespan="on", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    started = threading.Event()

    class Started(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    server = Started(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert started.wait(20), "the server did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
