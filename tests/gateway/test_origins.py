"""Which page may call which route, and by which names the gateway is called: every case in one table."""

import pytest

from cortex_gateway.errors import BadRequest, HostNotAllowed, OriginNotAllowed
from cortex_gateway.origins import OriginPolicy, RequestOrigin, is_host, is_origin, policy_of

CHAT, MODELS, UNLOAD, FLEET = "/v1/chat/completions", "/v1/models", "/admin/unload", "/admin/fleet"
LOOPBACK = "127.0.0.1:31313"
EVIL = "https://evil.example"
PLAIN = policy_of("0.0.0.0:31313", (), (), "Beast.lan")
TOLD = policy_of("10.0.0.5:31313", ("llm.example.com",), ("https://chat.example.com", "http://Other:8080"), "beast")
OPEN = policy_of("127.0.0.1:31313", ("*",), ("*",), "beast")


def check(policy: OriginPolicy, path: str, host: str | None, origin: str | None, site: str | None = None) -> str | None:
    return policy.check(RequestOrigin(path=path, hosts=() if host is None else (host,), origin=origin, site=site))


@pytest.mark.parametrize(
    ("policy", "path", "host", "origin", "allowed"),
    [
        # programs send no origin
        (PLAIN, CHAT, LOOPBACK, None, None),
        (PLAIN, CHAT, "cortex", None, None),  # a name inside a container network
        (PLAIN, CHAT, "llm.example.com", None, None),  # a proxy in front that keeps the name
        (PLAIN, CHAT, None, None, None),
        (PLAIN, UNLOAD, None, None, None),  # HTTP/1.0
        # names that the control routes answer to
        (PLAIN, UNLOAD, LOOPBACK, None, None),
        (PLAIN, UNLOAD, "localhost:31313", None, None),
        (PLAIN, UNLOAD, "LocalHost.", None, None),
        (PLAIN, UNLOAD, "cortex.localhost", None, None),
        (PLAIN, UNLOAD, "[::1]:31313", None, None),
        (PLAIN, UNLOAD, "192.168.1.20", None, None),
        (PLAIN, UNLOAD, "beast:31313", None, None),
        (PLAIN, UNLOAD, "beast.lan", None, None),
        (PLAIN, UNLOAD, "beast.local:31313", None, None),
        (TOLD, UNLOAD, "LLM.example.com", None, None),
        (OPEN, UNLOAD, "any.thing", None, None),
        # the gateway's own pages
        (PLAIN, UNLOAD, LOOPBACK, f"http://{LOOPBACK}", f"http://{LOOPBACK}"),
        (PLAIN, CHAT, "beast:31313", "http://beast:31313", "http://beast:31313"),
        (TOLD, UNLOAD, "llm.example.com", "https://llm.example.com", "https://llm.example.com"),  # behind TLS
        (TOLD, UNLOAD, "llm.example.com:443", "https://llm.example.com", "https://llm.example.com"),
        (PLAIN, UNLOAD, "[::1]:80", "http://[::1]", "http://[::1]"),
        # pages that are named
        (TOLD, CHAT, "10.0.0.5:31313", "https://chat.example.com", "https://chat.example.com"),
        (TOLD, UNLOAD, "10.0.0.5:31313", "https://chat.example.com", "https://chat.example.com"),
        (TOLD, CHAT, "elsewhere", "http://other:8080", "http://other:8080"),
        # inference only: pages of this machine, of the gateway's host, and installed programs
        (PLAIN, CHAT, LOOPBACK, "http://localhost:3000", "http://localhost:3000"),
        (PLAIN, CHAT, "192.168.1.20:31313", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        (PLAIN, CHAT, LOOPBACK, "http://tauri.localhost", "http://tauri.localhost"),
        (PLAIN, CHAT, "192.168.1.20:31313", "http://192.168.1.20:8080", "http://192.168.1.20:8080"),
        (PLAIN, CHAT, "beast:31313", "https://beast:3000", "https://beast:3000"),
        (TOLD, CHAT, "llm.example.com", "http://llm.example.com:3000", "http://llm.example.com:3000"),
        (PLAIN, CHAT, LOOPBACK, "chrome-extension://abcdef", "chrome-extension://abcdef"),
        (PLAIN, CHAT, LOOPBACK, "vscode-webview://1-2", "vscode-webview://1-2"),
        (PLAIN, CHAT, LOOPBACK, "app://obsidian.md", "app://obsidian.md"),
        (PLAIN, MODELS, LOOPBACK, "http://localhost:3000", "http://localhost:3000"),
        # everybody
        (OPEN, CHAT, "any.thing", EVIL, "*"),
        (OPEN, CHAT, LOOPBACK, "null", "*"),
        (OPEN, UNLOAD, LOOPBACK, f"http://{LOOPBACK}", f"http://{LOOPBACK}"),
        # that it lives is said to all, but no page of another site may read it
        (PLAIN, "/health", "evil.example", EVIL, None),
        (PLAIN, "/", LOOPBACK, "null", None),
        (PLAIN, "/health", LOOPBACK, "http://localhost:3000", "http://localhost:3000"),
    ],
)
def test_what_is_allowed(
    policy: OriginPolicy, path: str, host: str | None, origin: str | None, allowed: str | None
) -> None:
    """The origin whose pages may read the answer, as it was sent."""
    assert check(policy, path, host, origin) == allowed


@pytest.mark.parametrize(
    ("policy", "path", "host", "origin"),
    [
        (PLAIN, UNLOAD, LOOPBACK, EVIL),
        (PLAIN, FLEET, LOOPBACK, EVIL),
        (PLAIN, CHAT, LOOPBACK, EVIL),
        (PLAIN, MODELS, LOOPBACK, EVIL),
        (PLAIN, "/nope", LOOPBACK, EVIL),
        (PLAIN, CHAT, LOOPBACK, "null"),
        (PLAIN, CHAT, LOOPBACK, ""),
        (PLAIN, CHAT, LOOPBACK, "http://localhost.evil.example"),
        (PLAIN, CHAT, LOOPBACK, "http://127.0.0.1.evil.example"),
        (PLAIN, CHAT, LOOPBACK, "http://localhost, https://evil.example"),
        (PLAIN, CHAT, LOOPBACK, "http://user@localhost"),
        (PLAIN, CHAT, LOOPBACK, "http://localhost/"),
        (PLAIN, CHAT, "evil.example:31313", "http://evil.example:31313"),  # rebound: the page's own name leads here
        (PLAIN, CHAT, "evil.example:31313", "http://evil.example"),
        (PLAIN, UNLOAD, LOOPBACK, "http://localhost:3000"),  # another program of this machine is another origin
        (PLAIN, UNLOAD, LOOPBACK, "http://127.0.0.1"),
        (PLAIN, UNLOAD, LOOPBACK, "chrome-extension://abcdef"),
        (PLAIN, UNLOAD, "192.168.1.20:31313", "http://192.168.1.20:8080"),
        (PLAIN, UNLOAD, LOOPBACK, f"ftp://{LOOPBACK}"),
        (TOLD, CHAT, LOOPBACK, "http://chat.example.com"),
        (TOLD, CHAT, LOOPBACK, "https://chat.example.com:444"),
        (OPEN, UNLOAD, LOOPBACK, EVIL),
        (OPEN, UNLOAD, LOOPBACK, "null"),
    ],
)
def test_pages_of_other_origins_are_refused(policy: OriginPolicy, path: str, host: str, origin: str) -> None:
    """The error names the origin and the setting."""
    with pytest.raises(OriginNotAllowed, match=r"\[gateway\] origins") as refused:
        check(policy, path, host, origin)

    assert repr(origin) in refused.value.message


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_s_image_or_form_is_refused_on_a_control_route(site: str) -> None:
    """Browsers send no Origin with a GET of that kind, but say where it comes from."""
    with pytest.raises(OriginNotAllowed):
        check(PLAIN, FLEET, LOOPBACK, None, site)

    assert check(PLAIN, FLEET, LOOPBACK, None, "none") is None
    assert check(PLAIN, FLEET, LOOPBACK, None, "same-origin") is None
    assert check(PLAIN, MODELS, LOOPBACK, None, site) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:31313", "127.0.0.1.evil.example", "localhost.evil", "evil", "2130706433"]
)
@pytest.mark.parametrize("path", [UNLOAD, FLEET, "/admin", "//admin/unload", "/v1", "/nope"])
def test_control_routes_do_not_answer_to_foreign_names(path: str, host: str) -> None:
    """Whoever owns a name can point it here and load a page by it; what is not known to be inference is control."""
    for policy in (PLAIN, TOLD):
        with pytest.raises(HostNotAllowed, match=r"\[gateway\] hosts") as refused:
            check(policy, path, host, None)

        assert repr(host.partition(":")[0]) in refused.value.message


@pytest.mark.parametrize(
    "hosts", [("a", "b"), ("a b",), ("a:b",), ("a:1:2",), ("http://a",), ("[::1",), ("a/b",), ("",), ("a:123456",)]
)
@pytest.mark.parametrize("path", [CHAT, UNLOAD, "/health"])
def test_a_host_header_that_is_none_is_refused(path: str, hosts: tuple[str, ...]) -> None:
    """RFC 9112 section 3.2: 400."""
    with pytest.raises(BadRequest, match="Host header") as refused:
        PLAIN.check(RequestOrigin(path=path, hosts=hosts))

    assert refused.value.status == 400


def test_this_machine_s_names_are_known() -> None:
    """Of the listening address only a name is one; an address is known anyway."""
    assert PLAIN.hosts == {"beast.lan", "beast", "beast.local"}
    assert policy_of("gw.lan:1", ("X.example",), (), "b").hosts == {"gw.lan", "x.example", "b", "b.local"}
    assert policy_of("[::1]:1", (), (), "").hosts == frozenset()


@pytest.mark.parametrize(
    ("text", "host", "origin"),
    [
        ("*", True, True),
        ("llm.example.com", True, False),
        ("::1", True, False),
        ("10.0.0.1", True, False),
        ("llm.example.com:80", False, False),
        ("https://llm.example.com", False, True),
        ("http://[::1]:3000", False, True),
        ("chrome-extension://abc", False, True),
        ("https://llm.example.com/", False, False),
        ("https://", False, False),
        ("null", True, False),
        ("", False, False),
        ("a b", False, False),
    ],
)
def test_what_may_be_written_in_the_settings(text: str, host: bool, origin: bool) -> None:
    """Hosts are names, origins are what a browser sends."""
    assert (is_host(text), is_origin(text)) == (host, origin)
