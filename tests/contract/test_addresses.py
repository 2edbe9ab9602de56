"""Both programs take the same addresses and refuse the same ones, in words that show the right form."""

import contextlib
import socket

import pytest

from cortex_gateway.serving import listen as gateway_listens
from neuron_jax.common.addresses import parse_address, parse_host, parse_url
from neuron_jax.config import ServerConfig
from neuron_jax.daemon.app import listen as neuron_listens

ADDRESSES = {
    "127.0.0.1:31313": ("127.0.0.1", 31313),
    "0.0.0.0:0": ("0.0.0.0", 0),
    "localhost:65535": ("localhost", 65535),
    "a-b.c_d.lan:1": ("a-b.c_d.lan", 1),
    "[::]:31313": ("::", 31313),
    "[::1]:0": ("::1", 0),
    "[fd00::1:2]:80": ("fd00::1:2", 80),
}
NO_ADDRESSES = {
    "": "must be host:port",
    "31313": "must be host:port",
    "localhost": "must be host:port",
    ":31313": "must be host:port",
    "http://127.0.0.1:80": "must be host:port alone",
    "::1": r'stands in brackets, as "\[::1\]:\d+"',
    "::": r'stands in brackets, as "\[::\]:\d+"',
    "::1:31313": r'stands in brackets, as "\[::1\]:31313"',
    "::1:3131": r'stands in brackets, as "\[::1\]:3131"',
    "fd00::1:80": r'stands in brackets, as "\[fd00::1\]:80"',
    "::1]:80": r'stands in brackets, as "\[::1\]:80"',
    "a:b:80": r'stands in brackets, as "\[::1\]:\d+"',
    "[::1:31313": r'behind the brackets, as "\[::1\]:\d+"',
    "[::1]": r'behind the brackets, as "\[::1\]:\d+"',
    "[::1]80": r'behind the brackets, as "\[::1\]:\d+"',
    "[]:80": "must be host:port",
    "[::g]:80": "in brackets must be an IPv6 address",
    "[localhost]:80": "in brackets must be an IPv6 address",
    "[127.0.0.1]:80": "in brackets must be an IPv6 address",
    "[fe80::1%eth0]:80": "in brackets must be an IPv6 address",
    "[::1]:": "a port is a number from 0 to 65535",
    "localhost:": "a port is a number from 0 to 65535",
    "localhost:http": "a port is a number from 0 to 65535",
    "localhost:65536": "a port is a number from 0 to 65535",
    "localhost:-1": "a port is a number from 0 to 65535",
    "localhost: 80": "a port is a number from 0 to 65535",
    "localhost:²": "a port is a number from 0 to 65535",
    "127.0.0.1:80/v1": "a port is a number from 0 to 65535",
    "127.0.0.256:80": "four numbers from 0 to 255",
    "127.1:80": "four numbers from 0 to 255",
    "*:80": "must be a name or an IP address",
    "a b:80": "must be a name or an IP address",
    "-a:80": "must be a name or an IP address",
}
HOSTS = ("127.0.0.1", "0.0.0.0", "::", "::1", "fd00::1:2", "localhost", "beast.lan", "node_7")
NO_HOSTS = {
    "": "must be a name or an IP address",
    "[::1]": 'without brackets, as "::1"',
    "127.0.0.1:80": "without a port",
    "::1:31313": "without a port",
    "[::1]:80": "without a port",
    "10.0.0": "four numbers from 0 to 255",
}
URLS = {
    "http://a:13131": "http://a:13131",
    "HTTP://a": "http://a",
    "https://[::1]:13131/": "https://[::1]:13131",
    "http://[::1]": "http://[::1]",
    "http://proxy/neurons/a/": "http://proxy/neurons/a",
}
NO_URLS = {
    "a:13131": "must be a URL",
    "ftp://a": "must be a URL",
    "http://": "must be host:port",
    "http://::1:13131": r'stands in brackets, as "\[::1\]:13131"',
    "http://[::1:13131": "behind the brackets",
    "http://a:0": "port 0 cannot be called",
    "http://a:70000": "a port is a number",
    "http://a b": "must be a name or an IP address",
    "http://name:word@a:1": "and nothing else",
    "http://a/?q": "and nothing else",
    "http://a#b": "and nothing else",
}


@pytest.mark.parametrize(("text", "found"), ADDRESSES.items())
def test_an_address_is_read_and_written_alike(text: str, found: tuple[str, int]) -> None:
    address = parse_address(text)

    assert address == found
    assert str(address) == text


@pytest.mark.parametrize(("text", "told"), NO_ADDRESSES.items())
def test_what_is_no_address_is_told_with_the_right_form(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_address(text)


@pytest.mark.parametrize("text", HOSTS)
def test_a_host_stands_alone(text: str) -> None:
    assert parse_host(text) == text


@pytest.mark.parametrize(("text", "told"), NO_HOSTS.items())
def test_what_is_no_host_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_host(text)


@pytest.mark.parametrize(("text", "found"), URLS.items())
def test_a_url_ends_without_a_slash(text: str, found: str) -> None:
    """Paths are put behind it."""
    assert parse_url(text) == found


@pytest.mark.parametrize(("text", "told"), NO_URLS.items())
def test_what_is_no_url_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_url(text)


def ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def listener(program: str, host: str) -> socket.socket:
    if program == "cortex":
        return gateway_listens(f"[{host}]:0" if ":" in host else f"{host}:0", "--port")
    return neuron_listens(ServerConfig(host=host, port=0))


@pytest.mark.skipif(not ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("program", ["cortex", "neuron"])
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("::", {"127.0.0.1": True, "::1": True}),
        ("0::0", {"127.0.0.1": True, "::1": True}),
        ("::1", {"127.0.0.1": False, "::1": True}),
        ("0.0.0.0", {"127.0.0.1": True, "::1": False}),
    ],
)
def test_every_address_means_both_families(program: str, host: str, reached: dict[str, bool]) -> None:
    """`[::]` takes IPv4 too; any other address is what it says."""
    with listener(program, host) as sock:
        port = sock.getsockname()[1]

        assert {there: connects(there, port) for there in reached} == reached


def connects(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False
