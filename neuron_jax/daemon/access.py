"""Who may ask what, before any body is read: media types, the secret, else the page behind a request, its Host, its network.

A browser lets any web page send simple requests to any address, this host's own included, and a page whose name was made
to point here (DNS rebinding) passes for ours. So a POST is JSON, comes from no page that was not allowed, and names a host
that no stranger can have a page under. Who shows the secret is neither.
"""

import functools
import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from neuron_jax.common.addresses import Address
from neuron_jax.config import NeuronConfig
from neuron_jax.daemon.fields import shown
from neuron_jax.daemon.problems import forbidden, unauthorized, unsupported_media

JSON = re.compile(r"application/(?:json|[\w.-]+\+json)|text/json")
PRIVATE = (".localhost", ".local", ".lan", ".internal", ".home.arpa")
"""Names under these are given by nobody but a network's own operator."""
EVERY = "*"
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
"""What a proxy says of the host behind it: then this host is not who asks."""

Headers = Mapping[str, str]


@frozen
class AccessGuard:
    """`hosts` and `origins` are allowed besides what is harmless; `*` among them allows all. `own`: this host's name.

    Without a `secret` other hosts control this neuron only where the network is trusted, or lets in whom a certificate names.
    """

    secret: str = field(default="", repr=False)
    trusts_network: bool = False
    own: str = ""
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: NeuronConfig) -> "AccessGuard":
        """As the configuration says."""
        return cls(
            secret=config.access.secret,
            trusts_network=config.access.trust_network or config.server.tls_client_ca is not None,
            own=socket.gethostname().partition(".")[0].lower(),
            hosts=frozenset(name.lower().rstrip(".") for name in config.server.allowed_hosts),
            origins=frozenset(origin.lower().rstrip("/") for origin in config.server.allowed_origins),
        )

    async def guard(self, asked: ASGIConnection[Any, Any, Any, Any], route: BaseRouteHandler) -> None:
        """For every route. In its `opt`: `control`, it changes what the neuron does; `lending`, it asks for a secret of its
        own; `open`, it asks for none. Raises Problem."""
        scope: Any = asked.scope
        control = bool(route.opt.get("control"))
        if scope["method"] == "POST":
            check_media(asked.headers, control=control)
        if route.opt.get("lending"):
            return
        if self.secret:
            self.check_secret(asked.headers, needed=not route.opt.get("open"))
            return
        if scope["method"] == "POST":
            self.check_page(asked.headers)
        if control and not self.trusts_network:
            check_place(asked.headers, scope["client"], scope["server"])

    def check_secret(self, headers: Headers, *, needed: bool) -> None:
        """Raises Problem."""
        shows = headers.get("authorization", "")
        if needed and not shows:
            raise unauthorized(
                "missing_secret",
                "This neuron wants its secret, as Authorization: Bearer. A gateway has it from secret in its [[neurons]] or "
                "neuron_secret in its [gateway], another neuron from secret in its [[peers]].",
            )
        if needed and not knows(shows, self.secret):
            raise unauthorized("wrong_secret", "The secret of this neuron is another one.")

    def check_page(self, headers: Headers) -> None:
        """Refuse what only a browser sends, and what a browser could be made to send. Raises Problem."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and not {EVERY, origin.lower()} & self.origins:
            raise forbidden(
                "origin_not_allowed",
                f"Pages of {shown(origin)} may not ask this neuron; allowed_origins in [server] says which may.",
            )
        if not self._is_ours(host):
            raise forbidden(
                "host_not_allowed",
                f"This neuron does not go by the name {shown(host)}; allowed_hosts in [server] says what other names "
                "than IP addresses and local ones it has.",
            )

    def _is_ours(self, host: str) -> bool:
        name = _without_port(host).lower().rstrip(".")
        label, dot, _ = name.partition(".")
        harmless = not dot or label == self.own or name.endswith(PRIVATE) or _address(name) is not None
        return bool(name and harmless) or bool({EVERY, name} & self.hosts)


def knows(authorization: str, secret: str) -> bool:
    """Whether the header bears the secret; takes as long for every wrong one of a length."""
    scheme, _, shown_secret = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(shown_secret.strip().encode(), secret.encode())


def check_place(headers: Headers, client: tuple[str, int] | None, server: tuple[str, int | None] | None) -> None:
    """Let this very host through, and no other that a proxy here speaks for. Raises Problem."""
    there = _address(client[0]) if client else None
    here = there is not None and (there.is_loopback or (server is not None and there == _address(server[0])))
    if not here or any(name in headers for name in FORWARDED):
        raise forbidden(
            "untrusted_network",
            "Other hosts may not load or unload models of a neuron without a secret: set secret in its configuration "
            "(NEURON_SECRET), and in that of its gateways, or trust_network = true.",
        )


def exposure(config: NeuronConfig) -> str | None:
    """What an operator must know who lets other hosts in without a secret."""
    host = _address(config.server.host)
    asks = config.access.secret or config.server.tls_client_ca
    if asks or config.server.host == "localhost" or (host is not None and host.is_loopback):
        return None
    whole = f"whoever reaches {Address(config.server.host, config.server.port)} may use the models of this neuron"
    if config.access.trust_network:
        return f"{whole}, load and unload them: there is no secret, and trust_network is set"
    return f"{whole}, and only this host may load and unload them: set secret, for its gateways too, or trust_network = true"


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


@functools.lru_cache(256)
def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """IPv4 that came in over IPv6 is IPv4."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
