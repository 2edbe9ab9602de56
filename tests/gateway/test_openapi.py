"""The document at /openapi.json is true of the table of routes, and a client can be made of it."""

from typing import Any

import pytest

from cortex_gateway.app import routes
from cortex_gateway.dialects.dialect import Count, Fixed, Generation, Tokenizing
from cortex_gateway.dialects.table import DIALECTS
from cortex_gateway.openapi.bodies import BODIES, LOAD
from cortex_gateway.openapi.document import document
from cortex_gateway.placement.load_options import UNSAID
from tests.fakes.gateway_rig import Rig, run

READING = [
    row.path for dialect in DIALECTS for row in dialect.routes if isinstance(row, Generation | Count | Tokenizing)
]


def test_every_route_that_reads_a_body_says_which() -> None:
    """And no other path is told of; a load has every option that there is."""
    admin = {f"/admin/{what}" for what in ("load", "plan", "reload", "unload")}
    kept = {f"/v1/conversations{rest}" for rest in ("", "/{id}", "/{id}/items")}
    posted = {"/api/show", *admin, *kept, *READING}

    assert set(BODIES) == posted
    assert set(LOAD["properties"]) == {"model", "node", "reload", *(field.name for field in UNSAID.__attrs_attrs__)}  # type: ignore[attr-defined]


def test_every_route_is_there() -> None:
    """By its method and path, with the parameters that the path has."""
    told = document(routes(DIALECTS), "1.2.3")
    fixed = [row.path for dialect in DIALECTS for row in dialect.routes if isinstance(row, Fixed)]

    assert told["info"]["version"] == "1.2.3"
    assert {"/v1/models/{name}", "/v1/responses/{id}/input_items", "/admin/requests/{id}/cancel", *fixed} <= set(
        told["paths"]
    )
    assert sum(map(len, told["paths"].values())) == len(routes(DIALECTS))
    for path, methods in told["paths"].items():
        for operation in methods.values():
            within = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "path"}
            assert within == {part[1:-1] for part in path.split("/") if part.startswith("{")}


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/messages", "text/event-stream"), ("/api/chat", "application/x-ndjson")]
)
def test_what_may_be_a_stream_says_so(path: str, kind: str) -> None:
    """In its own content type."""
    told: Any = document(routes(DIALECTS), "1")

    assert kind in told["paths"][path]["post"]["responses"]["200"]["content"]
    assert kind not in told["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]


def test_whoever_asks_is_told() -> None:
    """Without a key, as the health is."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.get("/openapi.json")

        assert (answer.status_code, answer.json()["openapi"]) == (200, "3.1.0")

    run(scenario)
