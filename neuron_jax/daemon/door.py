"""Who may ask what, before any body is read: media types, the page behind a request, its Host; pure but for the guard.

A browser lets any web page send simple requests to any address, this host's own included, and a page whose name was made
to point here (DNS rebinding) passes for ours. So a POST is JSON, comes from no page that was not allowed, and names a host
that no stranger can have a page under.
"""

import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Any

from attrs import frozen
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from neuron_jax.config import NeuronConfig
from neuron_jax.daemon.fields import shown
from neuron_jax.daemon.problems import forbidden, unsupported_media

JSON = re.compile(r"application/(?:json|[\w.-]+\+json)|text/json")
PRIVATE = (".localhost", ".local", ".lan", ".internal", ".home.arpa")
"""Names under these are given by nobody but a network's own operator."""
EVERY = "*"

Headers = Mapping[str, str]


@frozen
class Door:
    """`hosts` and `origins` are allowed besides what is harmless; `*` among them allows all. `own`: this host's name."""

    own: str = ""
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: NeuronConfig) -> "Door":
        """As [server] says."""
        return cls(
            own=socket.gethostname().partition(".")[0].lower(),
            hosts=frozenset(name.lower().rstrip(".") for name in config.server.allowed_hosts),
            origins=frozenset(origin.lower().rstrip("/") for origin in config.server.allowed_origins),
        )

    async def guard(self, asked: ASGIConnection[Any, Any, Any, Any], route: BaseRouteHandler) -> None:
        """For every route. `control` in a route's `opt`: it changes what the neuron does. Raises Problem."""
        http: Any = asked.scope
        if http["method"] != "POST":
            return
        check_media(asked.headers, control=bool(route.opt.get("control")))
        self.check_page(asked.headers)

    def check_page(self, headers: Headers) -> None:
        """Refuse what only a browser sends, and what a browser could be made to send. Raises Problem."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and not {EVERY, origin.lower()} & self.origins:
            raise forbidden(
                "foreign_origin",
                f"Pages of {shown(origin)} may not ask this neuron; allowed_origins in [server] says which may.",
            )
        if not self._is_ours(host):
            raise forbidden(
                "foreign_host",
                f"This neuron does not go by the name {shown(host)}; allowed_hosts in [server] says what other names "
                "than IP addresses and local ones it has.",
            )

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower().rstrip(".")
        label, dot, _ = name.partition(".")
        harmless = not dot or label == self.own or name.endswith(PRIVATE) or _is_address(name)
        return bool(name and harmless) or bool({EVERY, name} & self.hosts)


def check_media(headers: Headers, *, control: bool) -> None:
    """A body is JSON as it is, and a control route's says so. Raises Problem."""
    encoding = headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise unsupported_media(f"The content encoding {shown(encoding)} is not supported: send the body as it is.")
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not JSON.fullmatch(media) and (media or control):
        found = f"The content type {shown(media)} is not supported" if media else "The request has no content type"
        raise unsupported_media(f"{found}: send application/json.")


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
