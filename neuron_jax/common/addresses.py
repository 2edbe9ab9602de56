"""Hosts, host:port and URLs as an operator writes them; pure: it resolves no name and opens nothing."""

import ipaddress
import re
from typing import NamedTuple

PORT = 31313
"""What messages name as an example."""
HIGHEST_PORT = 65535
NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]+")


class Address(NamedTuple):
    """`host` has no brackets; `port` 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`127.0.0.1:80`, `name:80`, `[::1]:80`. Raises ValueError: what is wrong, and the right form."""
    if "://" in text:
        raise ValueError(f"must be host:port alone, as 127.0.0.1:{PORT}")
    bracketed = text.startswith("[")
    host, found, port = text[1:].partition("]:") if bracketed else text.rpartition(":")
    if bracketed and not found:
        raise ValueError(f'the port stands behind the brackets, as "[::1]:{PORT}"')
    if ":" in host and not bracketed:
        raise ValueError(f'an IPv6 address stands in brackets, as "{_in_brackets(text)}"')
    if not (found and host):
        raise ValueError(f"must be host:port, as 127.0.0.1:{PORT}")
    if bracketed and not _is_ipv6(host):
        raise ValueError("what stands in brackets must be an IPv6 address")
    if not (port.isascii() and port.isdigit() and int(port) <= HIGHEST_PORT):
        raise ValueError(f"a port is a number from 0 to {HIGHEST_PORT}")
    return Address(parse_host(host), int(port))


def parse_host(text: str) -> str:
    """A host alone, an IPv6 address without brackets. Raises ValueError."""
    if _is_ipv6(text):
        return text
    if text.startswith("[") and text.endswith("]") and _is_ipv6(text[1:-1]):
        raise ValueError(f'an address without a port stands without brackets, as "{text[1:-1]}"')
    if not NAME.fullmatch(text):
        raise ValueError("must be a name or an IP address, without a port")
    if not text.strip("0123456789.") and not _is_ipv4(text):
        raise ValueError("an IPv4 address is four numbers from 0 to 255")
    return text


def parse_url(text: str) -> str:
    """`http[s]://host[:port][/path]`; what is returned ends without a slash. Raises ValueError."""
    scheme, found, rest = text.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        raise ValueError("must be a URL, as http://host:port")
    place, slash, path = rest.partition("/")
    if "@" in place or "?" in rest or "#" in rest:
        raise ValueError("a URL here has a host, a port and perhaps a path, and nothing else")
    without_port = place.endswith("]") or ":" not in place
    if not parse_address(f"{place}:1" if without_port else place).port:
        raise ValueError("port 0 cannot be called")
    return f"{scheme.lower()}://{place}{slash}{path}".rstrip("/")


def is_every_ipv6(host: str) -> bool:
    """`::`, in any spelling."""
    return _is_ipv6(host) and ipaddress.IPv6Address(host).is_unspecified


def _in_brackets(text: str) -> str:
    host, _, port = text.rpartition(":")
    if port.isdigit() and _is_ipv6(host.strip("[]")):
        return f"[{host.strip('[]')}]:{port}"
    return f"[{text if _is_ipv6(text) else '::1'}]:{PORT}"


def _is_ipv6(text: str) -> bool:
    """Without a zone: with one it is of no use to other hosts."""
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _is_ipv4(text: str) -> bool:
    try:
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False
