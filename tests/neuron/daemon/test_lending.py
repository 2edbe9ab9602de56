"""Who may borrow this host's devices, and what a borrower is told; ranks that compute are in tests/system/test_hosts.py."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import httpx
import msgspec
import pytest

from neuron_jax.config import AccessConfig, ModelSpec, PeerConfig, RanksConfig
from neuron_jax.daemon.devices import Devices
from neuron_jax.daemon.groups import Groups, split
from neuron_jax.daemon.peers import Peer, PeerError, peers_of
from neuron_jax.errors import LoadError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec, GroupMember
from tests.fakes.engine_double import COMMAND
from tests.fakes.live_neuron import MODEL, config_for, running, still_devices
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

SECRET = "known to friends"
TINY = {"model_id": MODEL}
RANK = EngineSpec(MODEL, "", devices=(1,), tensor_parallel=2, group=GroupMember(rank=1, world=2))


def with_lender(tmp_path: Path, use: Callable[[str], Awaitable[Any]], secret: str = SECRET, **more: Any) -> Any:
    """The result of `use` on the address of a neuron with two devices."""
    folder = write_tiny_model(tmp_path / "tiny")
    ranks = RanksConfig(address="10.0.0.9", secret=secret) if secret else RanksConfig()
    config = config_for(folder, tmp_path / "cache", ranks=ranks, **more)

    async def run() -> Any:
        async with running(config) as (url, _):
            return await use(url)

    return asyncio.run(run())


def peer(url: str, secret: str = SECRET) -> Peer:
    return Peer(PeerConfig(name="friend", endpoint=url), secret)


def test_a_friend_is_offered_devices_and_an_address(tmp_path: Path) -> None:
    """As many as are wanted or there, the emptiest first; `address` is what [ranks] says."""

    async def use(url: str) -> list[Any]:
        return [await peer(url).offer(ModelSpec(**TINY), count) for count in (1, 2, 8)]

    one, two, eight = with_lender(tmp_path, use)

    assert one.address == "10.0.0.9"
    assert (one.devices, two.devices, eight.devices) == ((1,), (0, 1), (0, 1))


@pytest.mark.parametrize(
    ("secret", "told", "words"),
    [("", SECRET, "has no secret"), (SECRET, "guess", "is another one")],
    ids=["lends nothing", "wrong"],
)
def test_a_stranger_is_refused(tmp_path: Path, secret: str, told: str, words: str) -> None:
    async def use(url: str) -> None:
        with pytest.raises(PeerError, match=words):
            await peer(url, told).offer(ModelSpec(**TINY), 1)
        with pytest.raises(LoadError, match=words):
            await peer(url, told).start(RANK, ModelSpec(**TINY), (1,))

    with_lender(tmp_path, use, secret)


def test_the_secret_of_ranks_is_the_one_that_lending_asks_for(tmp_path: Path) -> None:
    """Whatever the neuron asks of its gateways, and whatever name it is called by."""

    async def use(url: str) -> None:
        assert (await peer(url).offer(ModelSpec(**TINY), 1)).devices == (1,)
        with pytest.raises(PeerError, match="is another one"):
            await peer(url, "of gateways").offer(ModelSpec(**TINY), 1)

    with_lender(tmp_path, use, access=AccessConfig(secret="of gateways"))


def test_a_peer_may_have_a_secret_of_its_own() -> None:
    configs = (
        PeerConfig(name="a", endpoint="http://a", secret="of a"),
        PeerConfig(name="b", endpoint="http://b"),
    )

    assert {name: one.secret for name, one in peers_of(configs, SECRET).items()} == {"a": "of a", "b": SECRET}


@pytest.mark.parametrize(
    ("route", "body", "status", "words"),
    [
        ("/ranks/offer", {"model": TINY}, 400, "count must be"),
        ("/ranks/offer", {"model": TINY, "count": 0}, 400, "count must be"),
        ("/ranks/offer", {"count": 1}, 400, "model must be an object"),
        ("/ranks/offer", {"model": {"model_id": "no such thing"}, "count": 1}, 422, "no such thing"),
        ("/ranks/offer", {"model": {"model_id": MODEL, "colour": 1}, "count": 1}, 400, "colour"),
        ("/ranks", {"model": TINY}, 400, "spec is not one of an engine"),
        ("/ranks", {"model": TINY, "spec": {"model_id": "m", "path": "p"}}, 400, "spec must have a group"),
        ("/ranks", {"model": TINY, "spec": {"model_id": "m", "path": 3}}, 400, "spec is not one of an engine"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(
    tmp_path: Path, route: str, body: dict[str, Any], status: int, words: str
) -> None:
    async def use(url: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            return await http.post(route, json=body, headers={"Authorization": f"Bearer {SECRET}"})

    answer = with_lender(tmp_path, use)

    assert answer.status_code == status
    assert words in answer.text


def test_devices_of_another_kind_are_not_lent(tmp_path: Path) -> None:
    async def use(url: str) -> None:
        with pytest.raises(LoadError, match="devices of kind cuda are wanted; here are cpu"):
            await peer(url).start(msgspec.structs.replace(RANK, platform="cuda"), ModelSpec(**TINY), (1,))

    with_lender(tmp_path, use)


def test_a_rank_lives_as_long_as_its_borrower_listens(tmp_path: Path) -> None:
    """The double stands for the rank's process; the lender shows it, counts its device, and forgets it after."""

    async def use(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            rank = await peer(url).start(RANK, ModelSpec(**TINY), (1,))
            await until(lambda: rank.phase == "ready")
            groups = (await http.get("/discovery")).json()["groups"]
            assert [(group["model_id"], group["role"]) for group in groups] == [(MODEL, "member")]
            assert groups[0]["ranks"] == [
                {"rank": 1, "host": "127.0.0.1", "devices": [1], "pid": rank.pid, "phase": "ready"}
            ]
            # What is lent is not the emptiest any more.
            assert (await peer(url).offer(ModelSpec(**TINY), 1)).devices == (0,)
            await rank.close()
            assert "was given back" in str(rank.died.result())
            await until(lambda: not Path(f"/proc/{rank.pid}").exists())

    with_lender(tmp_path, use)


def test_ranks_of_one_host() -> None:
    assert split((0, 1, 2), "host") == [(0, 1, 2)]
    assert split((0, 1, 2), "device") == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("hosts", "secret", "kind", "words"),
    [
        (("friend",), "", "bad_devices", "lends nothing without a secret"),
        (("stranger",), SECRET, "bad_devices", "hosts names 'stranger', and .* knows friend"),
        (("friend",), SECRET, "rendezvous_timeout", "friend at http://127.0.0.1:9 does not answer"),
        ((), SECRET, "rendezvous_timeout", "needs 1 .* and 0 can be had"),
    ],
)
def test_why_nothing_can_be_borrowed(
    tmp_path: Path, hosts: tuple[str, ...], secret: str, kind: str, words: str
) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    config = config_for(
        folder,
        tmp_path / "cache",
        ranks=RanksConfig(secret=secret) if secret else RanksConfig(),
        peers=(PeerConfig(name="friend", endpoint="http://127.0.0.1:9"),),
    )
    model = ModelSpec(model_id=MODEL, hosts=hosts, tensor_parallel=2)

    async def run() -> EngineClient:
        devices: Devices = still_devices(1)
        spec = EngineSpec(MODEL, str(folder), tensor_parallel=2)
        return await Groups(config, devices, COMMAND).start(model, spec, lambda _: None)

    with pytest.raises(LoadError, match=words) as refused:
        asyncio.run(run())

    assert refused.value.kind == kind


def test_a_taken_port_is_met_by_another_rendezvous(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    config = config_for(folder, tmp_path / "cache")
    unlucky = (sys.executable, "-m", "tests.fakes.unlucky_engine")

    async def run() -> None:
        groups = Groups(config, still_devices(1), unlucky)
        client = await groups.start(ModelSpec(**TINY), EngineSpec(MODEL, str(folder)), lambda _: None)
        await client.close()

    asyncio.run(run())

    assert (folder / "tries").read_text() == "xxx"


def test_secrets_are_not_shown() -> None:
    ranks = RanksConfig(secret=SECRET)
    one = PeerConfig(name="a", endpoint="http://a", secret=SECRET)

    assert SECRET not in repr((ranks, one, Peer(one, SECRET)))
    assert SECRET in json.dumps(attrs.asdict(ranks))
