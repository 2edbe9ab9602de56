"""Who may ask a neuron what: web pages, bodies that are no JSON, and names that a stranger could have made."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.config import CacheConfig, NeuronConfig, ServerConfig
from neuron_jax.daemon.door import Door, check_media
from neuron_jax.daemon.problems import Problem
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron

POSTS = (
    "/models/load",
    "/models/unload",
    "/ranks",
    "/ranks/offer",
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
)
CONTROL = POSTS[:4]
JSON = {"Content-Type": "application/json"}
FOREIGN = [
    ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
    ({"Content-Type": "multipart/form-data; boundary=x"}, 415, "unsupported_media_type"),
    ({**JSON, "Content-Encoding": "gzip"}, 415, "unsupported_media_type"),
    ({**JSON, "Content-Encoding": "br, gzip"}, 415, "unsupported_media_type"),
    ({**JSON, "Origin": "https://evil.example"}, 403, "foreign_origin"),
    ({**JSON, "Origin": "null"}, 403, "foreign_origin"),
    ({**JSON, "Host": "evil.example:13131"}, 403, "foreign_host"),
    ({**JSON, "Host": "127.0.0.1.evil.example"}, 403, "foreign_host"),
]


@pytest.mark.parametrize(
    ("headers", "status", "code"), FOREIGN, ids=[" ".join(f"{k}={v}" for k, v in row[0].items()) for row in FOREIGN]
)
def test_what_a_web_page_could_send_changes_nothing(
    tmp_path: Path, headers: dict[str, str], status: int, code: str
) -> None:
    """On every route that takes a POST, before the body is looked at; the model stays, and GET answers."""

    async def use(neuron: LiveNeuron) -> list[tuple[int, Any]]:
        body = b'{"model_id": "%b"}' % MODEL.encode()
        answers = [await neuron.http.post(path, content=body, headers=headers) for path in POSTS]
        listed = await neuron.http.get("/models", headers=headers)
        assert [model["status"] for model in listed.json() if model["id"] == MODEL] == ["loaded"]
        return [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]

    assert with_neuron(tmp_path, use) == [(status, code)] * len(POSTS)


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
    Door(own="gpu7", hosts=frozenset({"allowed.example"})).check_page({"host": host})


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example:13131", "localhost.evil.example"])
def test_names_that_a_stranger_may_have(host: str) -> None:
    with pytest.raises(Problem, match="does not go by the name"):
        Door(own="gpu7").check_page({"host": host})


def test_what_is_allowed_is_configured() -> None:
    """In any spelling, and `*` for everything."""
    some = ServerConfig(allowed_hosts=("Neuron.Example",), allowed_origins=("https://Tools.example/",))
    every = ServerConfig(allowed_hosts=("*",), allowed_origins=("*",))

    door(some).check_page({"host": "neuron.example:1", "origin": "https://tools.example"})
    door(every).check_page({"host": "any.example", "origin": "null"})
    with pytest.raises(Problem, match="allowed_origins in "):
        door(some).check_page({"host": "neuron.example:1", "origin": "http://tools.example"})


def door(server: ServerConfig) -> Door:
    return Door.of(NeuronConfig(cache=CacheConfig(models_dir=Path(), compile_dir=Path()), server=server))
