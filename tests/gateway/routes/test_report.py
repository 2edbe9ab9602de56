"""How a failure is told, wherever in an answer it happens."""

import asyncio
from typing import Any

import pytest

from cortex_gateway.dialects.table import DIALECTS
from cortex_gateway.errors import ShuttingDown
from cortex_gateway.routes.failures import report
from cortex_gateway.stream import Client

GOING = ShuttingDown("The gateway is going down.")


async def reported(client: Client) -> None:
    failure = await report(client, GOING, DIALECTS[0])
    assert failure.code == "shutting_down"


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("nothing", [("http.response.start", 503), ("http.response.body", None)]),
        ("stream", [("http.response.start", 200), ("http.response.body", None)]),
        ("half a body", [("http.response.start", 200)]),
        ("all of it", [("http.response.start", 200), ("http.response.body", None)]),
    ],
)
def test_a_failure_is_told_once_and_where_it_can_be(before: str, told: list[tuple[str, int | None]]) -> None:
    """Never within a body whose length the client knows, and never after the end."""
    sent: list[Any] = []

    async def main() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        scope: Any = {"headers": []}
        client = Client(scope, send, send)  # type: ignore[arg-type]  # nothing is received
        if before == "stream":
            client.fail = lambda failure: failure.message.encode()
            await client.begin_stream()
        elif before == "half a body":
            await client.start(200, [])
        elif before == "all of it":
            await client.answer(200, b"{}")
        await reported(client)

    asyncio.run(main())
    assert [(message["type"], message.get("status")) for message in sent] == told
    assert (b"going down" in sent[-1].get("body", b"")) is (before in ("nothing", "stream"))
