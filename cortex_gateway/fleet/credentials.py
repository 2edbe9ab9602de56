"""What the gateway shows a neuron, and by what it knows it again, by the neuron's address; knows no route and no socket."""

import ssl
from collections.abc import Awaitable, Callable, Iterable

import httpx

from cortex_gateway.config import Neuron
from neuron_jax.common.tls import client_context

Shown = dict[tuple[str, bytes], str]
Hook = Callable[[httpx.Request], Awaitable[None]]


def shown(neurons: Iterable[Neuron]) -> Shown:
    """What each of those that have a secret is shown, by its place."""
    return {_place(httpx.URL(one.endpoint)): f"Bearer {one.secret}" for one in neurons if one.secret}


def showing(secrets: Shown) -> list[Hook]:
    """Request hooks for httpx: what goes to a neuron with a secret bears it. A client's own credentials never do.

    `secrets` may grow while the client lives.
    """

    async def show(request: httpx.Request) -> None:
        secret = secrets.get(_place(request.url))
        if secret is not None:
            request.headers["Authorization"] = secret

    return [show]


def contexts(neurons: Iterable[Neuron]) -> dict[tuple[str, bytes], ssl.SSLContext]:
    """The TLS of each neuron that has files for it, by scheme and place of its URL. The files were looked at before."""
    return {
        _place(httpx.URL(one.endpoint)): client_context(one.tls_ca, one.tls_cert, one.tls_key)
        for one in neurons
        if one.tls_ca or one.tls_cert
    }


def _place(url: httpx.URL) -> tuple[str, bytes]:
    return url.scheme, url.netloc
