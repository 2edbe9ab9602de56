"""What there is, how it is, and what an operator can do about it."""

import pytest

from cortex_gateway.errors import LoadFailed
from cortex_gateway.placement.load_options import LoadOptions
from tests.fakes.gateway_rig import Rig, payloads, run


def test_models_are_listed_for_both_dialects() -> None:
    """Ids and aliases, with every spelling of the context length (dialects.md 4.1.24, 4.3.7)."""

    async def scenario(rig: Rig) -> None:
        page = (await rig.client.get("/v1/models?limit=1000")).json()
        entry = page["data"][0]

        assert [known["id"] for known in page["data"]] == ["alias", "demo", "org/demo"]
        assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == (
            "list",
            False,
            "alias",
            "org/demo",
        )
        assert (entry["type"], entry["object"], entry["alias_of"]) == ("model", "model", "org/demo")
        assert entry["locations"] == [{"node": "one", "status": "loaded", "vram_estimate_mb": 300}]
        assert (entry["max_model_len"], entry["max_output_tokens"]) == (8192, 1024)

    run(scenario)


@pytest.mark.parametrize(
    ("path", "name"), [("demo", "demo"), ("alias", "alias"), ("org/demo", "org/demo"), ("org%2Fdemo", "org/demo")]
)
def test_one_model_by_its_name(path: str, name: str) -> None:
    """Slashes and all; the entry is the list's (wire.md 2.9.21)."""

    async def scenario(rig: Rig) -> None:
        entry = (await rig.client.get(f"/v1/models/{path}")).json()
        page = (await rig.client.get("/v1/models")).json()

        assert entry["id"] == name
        assert entry in page["data"]

    run(scenario)


def test_an_unknown_model_has_near_ones() -> None:
    """404 with names to choose from."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.get("/v1/models/dem")

        assert response.status_code == 404
        assert response.json()["error"]["nearest"] == ["demo"]

    run(scenario)


@pytest.mark.parametrize("path", ["/", "/health"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_is_always_200(path: str, method: str) -> None:
    """dialects.md 4.1.23."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.request(method, path)

        assert response.status_code == 200
        assert method == "HEAD" or response.json() == {"status": "ok", "nodes": {"healthy": 1, "total": 1}}

    run(scenario)


def test_the_fleet_is_shown_node_by_node() -> None:
    """Each with its models."""

    async def scenario(rig: Rig) -> None:
        (node,) = (await rig.client.get("/admin/fleet")).json()["nodes"]

        assert (node["name"], node["endpoint"], node["healthy"]) == ("one", "http://one", True)
        assert [(model["id"], model["status"]) for model in node["models"]] == [("demo", "loaded")]
        assert node["models"][0]["circuit"] == {"state": "closed", "failures": 0, "rests_secs": 0.0, "reason": None}

    run(scenario)


def test_a_load_is_asked_for_and_awaited() -> None:
    """With what was said about it."""

    async def scenario(rig: Rig) -> None:
        body = {"model": "demo", "node": "one", "tensor_parallel": 2, "hosts": ["one"], "ranks": "device"}
        response = await rig.client.post("/admin/load", json=body)

        assert (response.status_code, response.json()) == (200, {"status": "loaded"})
        options = LoadOptions(tensor_parallel=2, hosts=("one",), ranks="device")
        asked = {"model": "demo", "node": "one", "options": options, "reload": False}
        assert rig.fleet.calls == [("load", asked)]
        assert rig.metrics.records == []

    run(scenario)


@pytest.mark.parametrize(
    ("option", "value"),
    [("tensor_parallel", 0), ("tensor_parallel", "2"), ("quant", ""), ("hosts", "one"), ("ranks", "core")],
)
def test_an_option_that_cannot_be_is_named(option: str, value: object) -> None:
    """Whatever a record refuses is the client's to mend, not ours."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post("/admin/load", json={"model": "demo", option: value})

        assert response.status_code == 400
        assert option in response.json()["error"]["message"]
        assert rig.fleet.calls == []

    run(scenario)


def test_a_load_s_progress_is_a_stream() -> None:
    """As the neuron's own is."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post("/admin/load", json={"model": "demo"}, headers={"accept": "text/event-stream"})

        assert response.headers["content-type"].startswith("text/event-stream")
        assert payloads(response.content) == [
            {"phase": "weights", "done": 1, "total": 2, "unit": "bytes"},
            {"status": "loaded"},
        ]

    run(scenario)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_load_that_fails_at_once_has_its_status(accept: str) -> None:
    """With the neuron's kind."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post("/admin/load", json={"model": "demo"}, headers={"accept": accept})

        assert response.status_code == 503
        assert response.json()["error"]["kind"] == "bad_checkpoint"

    run(scenario, error=LoadFailed("torn", kind="bad_checkpoint"))


def test_an_unload_is_asked_for() -> None:
    """From one node or all."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post("/admin/unload", json={"model": "demo"})

        assert response.json() == {"status": "unloaded"}
        assert rig.fleet.calls == [("unload", {"model": "demo", "node": None})]

    run(scenario)


def test_other_weights_are_asked_for() -> None:
    """What is not said is the fleet's to decide; the answer tells which weights each node serves."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post("/admin/reload", json={"model": "demo", "source": "tuned", "in_place": True})

        assert response.json()["nodes"]["one"]["source"] == "tuned"
        assert rig.fleet.calls == [
            ("reload", {"model": "demo", "node": None, "source": "tuned", "in_place": True}),
        ]

    run(scenario)


@pytest.mark.parametrize("path", ["/admin/load", "/admin/unload", "/admin/reload"])
@pytest.mark.parametrize(
    "body", [{}, {"model": 7}, {"model": "demo", "nod": "one"}, {"model": "demo", "node": 1}, {"model": "m" * 513}]
)
def test_an_operator_s_typo_is_named(path: str, body: dict[str, object]) -> None:
    """Nothing he asks for is ignored."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post(path, json=body)

        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_request_body"
        assert rig.fleet.calls == []

    run(scenario)
