"""A neuron's secret between the two programs: who shows it to whom, and where it is never seen."""

import asyncio
import contextlib
import json
import logging
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
from attrs import frozen

from cortex_gateway.access import AccessLog
from cortex_gateway.app import create_app
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from cortex_gateway.transport import NeuronTransport
from tests.fakes.gateway_rig import CHAT, HI, MESSAGES
from tests.fakes.live_neuron import MODEL, LiveNeuron, live_neuron
from tests.fakes.memory_transport import MemoryTransport
from tests.fakes.waiting import until

SECRET = "hunter2 of the fleet"


@frozen
class Stack:
    client: httpx.AsyncClient
    fleet: Fleet
    metrics: Metrics
    neuron: LiveNeuron


@contextlib.asynccontextmanager
async def stack(folder: pathlib.Path, shown: str | None, *, load: bool) -> AsyncIterator[Stack]:
    async with live_neuron(folder, secret=SECRET, load=load) as neuron:
        node = Neuron(name="beast", endpoint=neuron.url, secret=shown)
        config = Config(gateway=GatewayConfig(watch_secs=0.05), neurons=(node,))
        metrics = Metrics()
        fleet = Fleet(config, metrics, transport=NeuronTransport())
        await fleet.start()
        gateway = MemoryTransport({"127.0.0.1": AccessLog(create_app(fleet, metrics, config, Guard()), metrics)})
        async with httpx.AsyncClient(transport=gateway, base_url="http://127.0.0.1", timeout=20) as client:
            yield Stack(client, fleet, metrics, neuron)
        await fleet.close()


def run(
    folder: pathlib.Path,
    scenario: Callable[[Stack], Awaitable[None]],
    shown: str | None = SECRET,
    *,
    load: bool = False,
) -> None:
    async def main() -> None:
        async with stack(folder, shown, load=load) as it:
            await scenario(it)

    asyncio.run(main())


def test_a_gateway_that_knows_the_secret_does_everything(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It watches, loads, asks and unloads. What it answers and logs does not have the secret."""
    caplog.set_level(logging.DEBUG)

    async def scenario(it: Stack) -> None:
        answers = [
            await it.client.post("/admin/load", json={"model": MODEL}),
            await it.client.post(CHAT, json={"model": MODEL, "messages": HI}),
            await it.client.post(MESSAGES, json={"model": MODEL, "messages": HI, "max_tokens": 9}),
            await it.client.post(f"{MESSAGES}/count_tokens", json={"model": MODEL, "messages": HI}),
            await it.client.get("/admin/fleet"),
            await it.client.get("/v1/models"),
            await it.client.post("/admin/unload", json={"model": MODEL}),
        ]
        assert [answer.status_code for answer in answers] == [200] * 7
        texts = [answer.text + str(answer.headers) for answer in answers]
        pages = [str(it.metrics.render("")), repr(it.fleet.snapshot()), repr(it.fleet._config)]
        texts += [(await it.neuron.http.get(path)).text for path in ("/health", "/version", "/metrics")]
        assert not [text for text in [*texts, *pages] if "hunter2" in text]

    run(tmp_path, scenario)

    assert "hunter2" not in caplog.text


def test_a_client_s_credentials_stay_at_the_gateway(tmp_path: pathlib.Path) -> None:
    """A neuron is shown the gateway's secret, and a client cannot show another one in its place."""
    headers = {"Authorization": "Bearer sk-client", "x-api-key": "sk-client"}

    async def scenario(it: Stack) -> None:
        answer = await it.client.post(CHAT, json={"model": MODEL, "messages": HI}, headers=headers)
        assert answer.status_code == 200

    run(tmp_path, scenario, load=True)


@pytest.mark.parametrize(("shown", "words"), [(None, "wants its secret"), ("guess", "is another one")])
def test_a_gateway_that_does_not_is_told_in_the_neuron_s_words(
    tmp_path: pathlib.Path, shown: str | None, words: str
) -> None:
    """As the reason why the node is not up; a client hears that nobody is."""

    async def scenario(it: Stack) -> None:
        fleet = (await it.client.get("/admin/fleet")).text
        answer = await it.client.post(CHAT, json={"model": MODEL, "messages": HI})

        assert "beast does not let this gateway in: " in fleet
        assert words in fleet
        assert json.loads(fleet)["nodes"][0]["healthy"] is False
        assert answer.status_code in (404, 503)

    run(tmp_path, scenario, shown, load=True)


def test_a_secret_that_changes_is_the_gateway_s_fault_and_not_the_client_s(tmp_path: pathlib.Path) -> None:
    """502 and not 401, which a client takes for a word about its own key; the same for a load."""

    async def scenario(it: Stack) -> None:
        it.fleet._nodes._credentials.clear()  # from now on nothing is shown
        it.fleet._nodes._client.event_hooks = {"request": []}
        answer = await it.client.post(CHAT, json={"model": MODEL, "messages": HI})
        await until(lambda: not it.fleet.snapshot().nodes[0].healthy)

        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_denied")
        assert "does not let this gateway in" in answer.json()["error"]["message"]

    run(tmp_path, scenario, load=True)
