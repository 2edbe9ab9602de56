"""How requests for embeddings end that do not go well: engines that die under them, clients that leave; with the double."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, config_for, running
from tests.fakes.tiny_bert import write_tiny_bert
from tests.fakes.waiting import until

QUICK = RestartPolicy(first_delay=0.01)
BODY = {"model": MODEL, "input": ["the cat", "a"]}


def with_double(tmp_path: Path, use: Callable[[httpx.AsyncClient, Lifecycle], Awaitable[Any]], **script: Any) -> None:
    """`use` on a neuron whose model of embeddings has a double for its engine."""
    folder = write_tiny_bert(tmp_path / "bert")
    (folder / "double.json").write_text(json.dumps(script))
    config = config_for(folder, tmp_path / "cache")

    async def run() -> None:
        async with running(config, QUICK) as (url, lifecycle), httpx.AsyncClient(base_url=url, timeout=20) as http:
            await lifecycle.load(config.models[0])
            await use(http, lifecycle)

    asyncio.run(run())


def test_the_next_engine_answers_where_one_dies(tmp_path: Path) -> None:
    """All texts are asked for again; nobody has seen anything of the first answer."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        answer = await http.post("/v1/embeddings", json=BODY)

        assert answer.status_code == 200, answer.text
        assert [row["embedding"] for row in answer.json()["data"]] == [[4.0, 2.0], [3.0, 2.0]]
        assert lifecycle.residents[0].status.restarts == 1

    with_double(tmp_path, use, embedding_dies=1)


def test_a_request_that_ends_two_engines_is_not_tried_again(tmp_path: Path) -> None:
    """And says so, so that no gateway sends it to a third."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        answer = await http.post("/v1/embeddings", json=BODY)

        assert answer.status_code == 503
        assert answer.json()["error"]["engine_died"] is True
        assert lifecycle.residents[0].admission.in_flight == 0

    with_double(tmp_path, use, embedding_dies=9)


def test_a_client_that_leaves_gives_its_place_back(tmp_path: Path) -> None:
    """Its texts are forgotten by the engine; unloading waits for nothing of it."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        (resident,) = lifecycle.residents
        asking = asyncio.create_task(http.post("/v1/embeddings", json=BODY))
        await until(lambda: resident.load.running == 1)
        asking.cancel()
        await until(lambda: resident.load.running == 0)

        assert (resident.admission.in_flight, resident.client and resident.client.open) == (0, 0)
        async with asyncio.timeout(5):
            await resident.unload(60)

    with_double(tmp_path, use, embedding_stalls=True)
