"""Who may ask a neuron what: web pages, bodies that are no JSON, and names that a stranger could have made."""

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.config import AccessConfig, CacheConfig, NeuronConfig, ServerConfig
from neuron_jax.daemon.access import AccessGuard, check_media, check_place, exposure
from neuron_jax.daemon.problems import Problem
from tests.fakes.engine_double import ROOT, environment
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron
from tests.fakes.programs import program

POSTS = (
    "/models/load",
    "/models/unload",
    "/ranks",
    "/ranks/offer",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
)
CONTROL = POSTS[:4]
JSON = {"Content-Type": "application/json"}
FOREIGN = [
    ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
    ({**JSON, "Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
    ({**JSON, "Content-Encoding": "br, gzip"}, 415, "unsupported_media_type"),
    ({**JSON, "Origin": "https://evil.example"}, 403, "origin_not_allowed"),
    ({**JSON, "Origin": "null"}, 403, "origin_not_allowed"),
    ({**JSON, "Host": "evil.example:13131"}, 403, "host_not_allowed"),
    ({**JSON, "Host": "127.0.0.1.evil.example"}, 403, "host_not_allowed"),
]


@pytest.mark.parametrize(
    ("headers", "status", "code"), FOREIGN, ids=[" ".join(f"{k}={v}" for k, v in row[0].items()) for row in FOREIGN]
)
def test_what_a_web_page_could_send_changes_nothing(
    tmp_path: Path, headers: dict[str, str], status: int, code: str
) -> None:
    """On every route that takes a POST, before the body is looked at; the model stays, and GET answers.

    Lending asks for a secret instead, which no page has.
    """

    async def use(neuron: LiveNeuron) -> list[tuple[int, Any]]:
        body = b'{"model_id": "%b"}' % MODEL.encode()
        answers = [await neuron.http.post(path, content=body, headers=headers) for path in POSTS]
        listed = await neuron.http.get("/models", headers=headers)
        assert [model["status"] for model in listed.json() if model["id"] == MODEL] == ["loaded"]
        return [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]

    answers = with_neuron(tmp_path, use)

    lending = (status, code if status == 415 else "lends_nothing")
    assert answers == [lending if path.startswith("/ranks") else (status, code) for path in POSTS]


def test_a_body_without_a_type_is_read_where_nothing_is_controlled(tmp_path: Path) -> None:
    """A page can send that, too; an SDK that forgets it does no harm."""

    async def use(neuron: LiveNeuron) -> dict[str, httpx.Response]:
        return {path: await neuron.http.post(path, content=b"{}") for path in POSTS}

    answers = with_neuron(tmp_path, use)

    assert [answers[path].status_code for path in CONTROL] == [415] * 4
    assert answers["/v1/chat/completions"].json()["error"]["code"] == "missing_model_field"


@pytest.mark.parametrize(
    "media", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "text/json"]
)
def test_json_by_any_of_its_names(media: str) -> None:
    check_media({"content-type": media, "content-encoding": "identity"}, control=True)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:13131",
        "[::1]:13131",
        "[::1]",
        "192.168.1.20",
        "localhost:13131",
        "LOCALHOST",
        "neuron-1:13131",
        "beast.lan",
        "beast.local.",
        "neuron-0.neuron.default.svc.cluster.local",
        "gpu7.corp.example:13131",
        "allowed.example",
    ],
)
def test_names_that_no_stranger_can_have(host: str) -> None:
    """Addresses, names without a dot, those of private networks, this host's own, and what is allowed."""
    AccessGuard(own="gpu7", hosts=frozenset({"allowed.example"})).check_page({"host": host})


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example:13131", "localhost.evil.example"])
def test_names_that_a_stranger_may_have(host: str) -> None:
    with pytest.raises(Problem, match="does not go by the name"):
        AccessGuard(own="gpu7").check_page({"host": host})


def test_what_is_allowed_is_configured() -> None:
    """In any spelling, and `*` for everything."""
    some = ServerConfig(allowed_hosts=("Neuron.Example",), allowed_origins=("https://Tools.example/",))
    every = ServerConfig(allowed_hosts=("*",), allowed_origins=("*",))

    guard(some).check_page({"host": "neuron.example:1", "origin": "https://tools.example"})
    guard(every).check_page({"host": "any.example", "origin": "null"})
    with pytest.raises(Problem, match="allowed_origins in "):
        guard(some).check_page({"host": "neuron.example:1", "origin": "http://tools.example"})


def guard(server: ServerConfig) -> AccessGuard:
    return AccessGuard.of(config(server=server))


def config(**tables: Any) -> NeuronConfig:
    return NeuronConfig(cache=CacheConfig(models_dir=Path(), compile_dir=Path()), **tables)


SECRET = "hunter2"
OPEN = ("/health", "/version", "/metrics")
ASKED = ("/models", "/discovery", f"/models/{MODEL}/endpoint")


@pytest.mark.parametrize(
    ("shown", "status", "code"),
    [
        (None, 401, "missing_secret"),
        ("Bearer guess", 401, "wrong_secret"),
        (f"Basic {SECRET}", 401, "wrong_secret"),
        (f"Bearer {SECRET}x", 401, "wrong_secret"),
        ("Bearer hünter2", 401, "wrong_secret"),
        (f"Bearer {SECRET}", 200, None),
        (f"bearer  {SECRET}", 200, None),
    ],
)
def test_everything_but_three_pages_wants_the_secret(
    tmp_path: Path, shown: str | None, status: int, code: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Also of this host. Who shows it may come by any name and from anywhere. No answer and no log has it."""
    headers = {} if shown is None else {"Authorization": shown.encode()}

    async def use(neuron: LiveNeuron) -> None:
        http = neuron.http
        for path in OPEN:
            assert (await http.get(path)).status_code == 200
        answers = [await http.get(path, headers=headers) for path in ASKED]
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        page = {"Origin": "https://tools.example", "Host": "neuron.example", "X-Forwarded-For": "10.0.0.9"}
        for path in ("/v1/chat/completions", "/tokenize", "/models/unload"):
            told = body | {"model_id": MODEL}
            answers += [await http.post(path, json=told, headers={**page, **headers})]
        assert [answer.status_code for answer in answers] == [status] * 6
        assert not [answer.text for answer in answers if SECRET in answer.text]
        if code:
            assert {answer.json()["error"]["code"] for answer in answers} == {code}
            assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}

    with_neuron(tmp_path, use, secret=SECRET)
    assert SECRET not in caplog.text


def test_preflights_and_unknown_routes_tell_nothing(tmp_path: Path) -> None:
    async def use(neuron: LiveNeuron) -> tuple[int, int]:
        preflight = await neuron.http.options("/models/load")
        return preflight.status_code, (await neuron.http.get("/secrets")).status_code

    assert with_neuron(tmp_path, use, secret=SECRET) == (401, 404)


LOCAL = ("127.0.0.1", 13131)


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.8.8.8", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("192.168.1.20", "192.168.1.20"),
        ("::ffff:192.168.1.20", "192.168.1.20"),
    ],
)
def test_this_host_controls_its_neuron(client: str, server: str) -> None:
    """Over loopback, or by its own address."""
    check_place({}, (client, 40000), (server, 13131))


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ({}, ("192.168.1.21", 40000)),
        ({}, ("::ffff:192.168.1.21", 40000)),
        ({}, ("fd00::2", 40000)),
        ({}, None),
        ({"x-forwarded-for": "127.0.0.1"}, LOCAL),
        ({"forwarded": "for=10.0.0.9"}, LOCAL),
        ({"via": "1.1 proxy"}, LOCAL),
    ],
)
def test_other_hosts_do_not_without_a_secret(headers: dict[str, str], client: tuple[str, int] | None) -> None:
    """Nor whoever a proxy on this host speaks for."""
    with pytest.raises(Problem, match="set secret in its configuration") as refused:
        check_place(headers, client, ("192.168.1.20", 13131))

    assert (refused.value.status, refused.value.code) == (403, "untrusted_network")


@pytest.mark.parametrize(("trust", "status", "code"), [(False, 403, "untrusted_network"), (True, 400, None)])
def test_inference_stays_open_where_control_does_not(
    tmp_path: Path, trust: bool, status: int, code: str | None
) -> None:
    """A proxy on this host stands for another host."""
    elsewhere = {"X-Forwarded-For": "10.0.0.9"}

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.http.post("/models/load", json={"model_id": MODEL}, headers=elsewhere)
        assert answer.status_code == status  # 400: it is loaded already
        assert code is None or answer.json()["error"]["code"] == code
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        assert (await neuron.http.post("/v1/chat/completions", json=body, headers=elsewhere)).status_code == 200
        assert (await neuron.http.get("/models", headers=elsewhere)).status_code == 200

    with_neuron(tmp_path, use, trust_network=trust)


@pytest.mark.parametrize(
    ("host", "access", "told"),
    [
        ("127.0.0.1", {}, None),
        ("::1", {}, None),
        ("localhost", {}, None),
        ("0.0.0.0", {"secret": SECRET}, None),
        ("0.0.0.0", {}, "only this host may load and unload them: set secret"),
        ("::", {}, r"whoever reaches \[::\]:13131 may use"),
        ("beast.lan", {"trust_network": True}, "load and unload them: there is no secret"),
    ],
)
def test_who_lets_others_in_is_told_once(host: str, access: dict[str, Any], told: str | None) -> None:
    """At the start."""
    found = exposure(config(server=ServerConfig(host=host), access=AccessConfig(**access)))

    assert found is None if told is None else re.search(told, str(found))


PROGRAM = """
import os
from neuron_jax.config import load_config
from neuron_jax.daemon.app import serve
serve(load_config(None, os.environ))
"""


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_neuron_that_listens_everywhere_says_so_and_obeys_this_host(tmp_path: Path) -> None:
    """Once, on stderr; loopback of IPv4 is loopback, though it comes in over IPv6."""
    settings = {"NEURON_SERVER__HOST": "::", "NEURON_SERVER__PORT": "0", "CORTEX_CACHE": str(tmp_path)}
    with program(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment() | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().rpartition(":")[2].strip()
        asked = httpx.post(f"http://127.0.0.1:{port}/models/unload", json={"model_id": "x"}, timeout=20)
        process.terminate()
        _, said = process.communicate(timeout=20)

    assert (asked.status_code, asked.json()) == (404, {"error": "x is not loaded"})
    assert said.count("whoever reaches [::]:0 may use the models of this neuron") == 1
    assert said.count("WARNING") == 1
