"""Which web pages may call the gateway, and by which names it is called: decided from headers alone. Pure: no I/O, no clock.

A browser sends a page's request to any address that the page names, loopback and the local network included. Two headers
tell it from its user's own program: Origin, which no page can forge, and Host, which is the name that the page was loaded
by where its server has pointed a name of its own at this machine (DNS rebinding). Hence:

- control routes (all but /v1/*, /api/*, /tokenize, /detokenize, / and /health) answer to known names only, and to pages of
  the gateway's own origin;
- inference answers as well to pages of this machine and of the host that the gateway is on, under any port, and to programs
  that their user has installed (their origins have schemes of their own). Programs send no Origin and are not concerned;
- `[gateway] hosts` and `[gateway] origins` name more. `origins = ["*"]` opens inference to every page, control to none.

Sources: https://fetch.spec.whatwg.org/#origin-header, https://www.rfc-editor.org/rfc/rfc9110#section-7.2 (Host).
"""

import ipaddress
import re
from collections.abc import Iterable

from attrs import frozen

from cortex_gateway.errors import BadRequest, HostNotAllowed, OriginNotAllowed

ANY = "*"
OPEN = ("/", "/health")  # say that the gateway lives, to everybody
TOKENS = ("/tokenize", "/detokenize")  # inference on paths that vLLM has for it
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE)
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<place>[^/\s]*)", re.IGNORECASE)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


@frozen(kw_only=True)
class RequestOrigin:
    """What a request says of where it comes from and goes to.

    Attributes:
        path: decoded.
        hosts: every Host header.
        origin: the Origin header.
        site: the Sec-Fetch-Site header, where a browser sends one.
    """

    path: str
    hosts: tuple[str, ...] = ()
    origin: str | None = None
    site: str | None = None


@frozen(kw_only=True)
class OriginPolicy:
    """`hosts` are names in lower case without a port, `origins` as browsers write them; either may hold "*"."""

    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def check(self, asked: RequestOrigin) -> str | None:
        """The origin whose page may read the answer, "*" for every one, None for no page.

        Raises BadRequest for a Host header that is none, HostNotAllowed, OriginNotAllowed.
        """
        host = _host(asked.hosts)
        control = is_control(asked.path)
        if control and host is not None and not self.knows(host[0]):
            raise HostNotAllowed(host[0], sorted(self.hosts))
        if asked.origin is None:
            if control and asked.site in ("cross-site", "same-site"):
                raise OriginNotAllowed("another site", asked.path, control=True)
            return None
        origin = asked.origin.lower()
        if self._same(origin, host) or origin in self.origins:
            return asked.origin
        if not control and ANY in self.origins:
            return ANY
        if not control and self._near(origin, host):
            return asked.origin
        if asked.path in OPEN:
            return None
        raise OriginNotAllowed(repr(asked.origin), asked.path, control=control)

    def knows(self, name: str) -> bool:
        """Whether no stranger can have pointed `name` here: an address is no name, and the others are ours."""
        return ANY in self.hosts or name in self.hosts or _is_loopback(name) or _is_address(name)

    def _same(self, origin: str, host: tuple[str, str] | None) -> bool:
        """A page of the gateway's own origin, as seen by its browser: a proxy in front may add TLS."""
        scheme, name, port = _origin(origin)
        if host is None or name != host[0] or not self.knows(name):
            return False
        default = _DEFAULT_PORTS.get(scheme)
        return default is not None and (port or default) == (host[1] or default)

    def _near(self, origin: str, host: tuple[str, str] | None) -> bool:
        scheme, name, _ = _origin(origin)
        if scheme not in _DEFAULT_PORTS:
            return bool(scheme)  # chrome-extension, tauri, vscode-webview ...: no page of the web has such an origin
        return _is_loopback(name) or (host is not None and name == host[0] and self.knows(name))


def policy_of(listen: str, hosts: Iterable[str], origins: Iterable[str], machine: str) -> OriginPolicy:
    """What `[gateway]` says, and the names of this machine: `machine` is its host name."""
    own = machine.lower()
    short = own.partition(".")[0]
    names = {own, short, f"{short}.local", listen.rpartition(":")[0].strip("[]").lower()} if short else set()
    return OriginPolicy(
        hosts=frozenset(name for name in (*names, *map(str.lower, hosts)) if not _is_address(name)),
        origins=frozenset(origin.lower() for origin in origins),
    )


def is_control(path: str) -> bool:
    """Whatever is not known to be inference."""
    return not path.startswith(("/v1/", "/api/")) and path not in (*TOKENS, *OPEN)


def is_host(text: str) -> bool:
    """Whether it may stand in `[gateway] hosts`: a name or an address without a port, or "*"."""
    if text == ANY or _is_address(text):
        return True
    found = _HOST.fullmatch(text)
    return found is not None and found["name"] is not None and found["port"] is None


def is_origin(text: str) -> bool:
    """Whether it may stand in `[gateway] origins`: scheme://host[:port] as browsers write it, or "*"."""
    return text == ANY or bool(_origin(text)[0])


def _host(sent: tuple[str, ...]) -> tuple[str, str] | None:
    """Name and port of the Host header; None where an old client sent none. Raises BadRequest."""
    if not sent:
        return None
    found = _HOST.fullmatch(sent[0])
    if len(sent) > 1 or found is None:
        raise BadRequest("The Host header must be there once, as name, name:port or [address]:port.", param="host")
    return _name(found), found["port"] or ""


def _origin(text: str) -> tuple[str, str, str]:
    """Scheme, host name and port; empty for "null" and for what is none."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return "", "", ""
    scheme, place = found["scheme"].lower(), _HOST.fullmatch(found["place"])
    if scheme not in _DEFAULT_PORTS:
        return scheme, found["place"].lower(), ""
    return (scheme, _name(place), place["port"] or "") if place else ("", "", "")


def _name(found: re.Match[str]) -> str:
    return str(found["ipv6"] or found["name"]).lower().rstrip(".")


def _is_loopback(name: str) -> bool:
    """Names that browsers and resolvers keep for this machine (RFC 6761 section 6.3), and its addresses."""
    return name == "localhost" or name.endswith(".localhost") or (_is_address(name) and _address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        return bool(_address(name))
    except ValueError:
        return False


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(name)
