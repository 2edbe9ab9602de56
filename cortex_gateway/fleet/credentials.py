"""What the gateway shows a neuron so that it may use it, by the neuron's address; knows no route, reads no file."""

from collections.abc import Awaitable, Callable, Iterable

import httpx

from cortex_gateway.config import Neuron

Hook = Callable[[httpx.Request], Awaitable[None]]


def showing(neurons: Iterable[Neuron]) -> Hook:
    """A request hook for httpx: what goes to a neuron with a secret bears it. A client's own credentials never do."""
    secrets = {_place(httpx.URL(one.endpoint)): f"Bearer {one.secret}" for one in neurons if one.secret}

    async def show(request: httpx.Request) -> None:
        secret = secrets.get(_place(request.url))
        if secret is not None:
            request.headers["Authorization"] = secret

    return show


def _place(url: httpx.URL) -> tuple[str, bytes]:
    return url.scheme, url.netloc
