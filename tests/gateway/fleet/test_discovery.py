"""Neurons that a name server knows: what is asked and read, who joins the fleet and who leaves it."""

import asyncio
import contextlib
import pathlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.config import Config, Discovery, GatewayConfig, Neuron, load_config
from cortex_gateway.fleet import dns
from cortex_gateway.fleet.discovery import neurons, services
from cortex_gateway.fleet.dns import DnsError, Service
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from tests.fakes.host_double import HostDouble
from tests.fakes.live_fleet import cold, until
from tests.fakes.memory_transport import MemoryTransport
from tests.fakes.name_server import NameServer, answer, name_server

NAME = "_neuron._tcp.neuron.models.svc.cluster.local"
PODS = [Service(0, 50, 13131, f"neuron-{index}.neuron.models.svc.cluster.local") for index in range(3)]


def ask(server: NameServer, *before: tuple[str, int]) -> tuple[Service, ...]:
    async def main() -> tuple[Service, ...]:
        async with name_server(server) as it:
            return await services(NAME, (*before, it.address))

    return asyncio.run(main())


def test_a_name_server_is_asked_and_read() -> None:
    """The preferred first, whatever their order; records of other types are passed over."""
    server = NameServer(services=[PODS[2], PODS[0], PODS[1]])

    assert ask(server) == tuple(PODS)
    assert server.asked == ["udp"]


def test_a_long_answer_is_asked_for_by_tcp() -> None:
    """A datagram that is cut short says so."""
    server = NameServer(services=PODS, cut=True)

    assert ask(server) == tuple(PODS)
    assert server.asked == ["udp", "tcp"]


def test_the_next_name_server_is_asked_where_the_first_is_not_there() -> None:
    assert ask(NameServer(services=PODS[:1]), ("127.0.0.1", 9)) == (PODS[0],)


@pytest.mark.parametrize(("code", "why"), [(2, "refuses with code 2"), (5, "refuses with code 5")])
def test_a_refusal_is_told(code: int, why: str) -> None:
    with pytest.raises(DnsError, match=why):
        ask(NameServer(code=code))


def test_a_name_that_nobody_has_is_no_node() -> None:
    """NXDOMAIN: what a headless service without pods may answer."""
    assert ask(NameServer(code=3)) == ()


@pytest.mark.parametrize("name", ["", "a..b", "a" * 64, ".".join(["a" * 60] * 5)])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(DnsError, match="is no DNS name"):
        dns.question(name, 1)


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(0, 255))
def test_no_answer_is_too_broken_to_be_read(noise: bytes, place: int, byte: int) -> None:
    """Garbled or cut anywhere, it is a DnsError or some services, and reading it ends."""
    good = bytearray(answer(dns.question(NAME, 7), PODS[:1]))
    good[place % len(good)] = byte
    for message in (noise, b"\0\7\x81\x80" + noise, bytes(good), bytes(good[:place])):
        with contextlib.suppress(DnsError):
            assert all(isinstance(one, Service) for one in dns.answers(message, 7))


def test_nodes_are_called_as_their_pods() -> None:
    """Or by the whole name, where two services have pods of one name."""
    service = Discovery(srv=NAME, scheme="https", secret="word")
    twin = Service(0, 1, 1, "neuron-0.other")

    assert neurons((PODS[0], PODS[1], twin), service) == (
        Neuron(name=PODS[0].target, endpoint=f"https://{PODS[0].target}:13131", secret="word"),
        Neuron(name="neuron-1", endpoint=f"https://{PODS[1].target}:13131", secret="word"),
        Neuron(name="neuron-0.other", endpoint="https://neuron-0.other:1", secret="word"),
    )


def fleet_of(
    pods: list[Service], use: Callable[[Fleet, MemoryTransport], Coroutine[Any, Any, None]], **hosts: HostDouble
) -> None:
    """A fleet whose name server answers with `pods` as they are when it is asked."""

    async def resolve(name: str) -> tuple[Service, ...]:
        assert name == NAME
        if not pods:
            raise DnsError("nobody is there")
        return tuple(pods)

    async def main() -> None:
        config = Config(
            gateway=GatewayConfig(watch_secs=0.05),
            neurons=(),
            discovery=(Discovery(srv=NAME, every_secs=0.05, secret="word"),),
        )
        places = {f"neuron-{name[1:]}.neuron.models.svc.cluster.local": host for name, host in hosts.items()}
        transport = MemoryTransport(places)
        fleet = Fleet(config, Metrics(), transport=transport, resolve=resolve)
        await fleet.start()
        try:
            await use(fleet, transport)
        finally:
            await fleet.close()

    asyncio.run(main())


def names(fleet: Fleet) -> dict[str, bool]:
    return {node.name: node.healthy for node in fleet.snapshot().nodes}


def test_nodes_join_and_leave_while_the_gateway_runs() -> None:
    """A StatefulSet is scaled up and down. Who answers stays, named or not; while nobody can be asked all stay."""
    pods = PODS[:1]
    up = HostDouble(sizes={"m": 1}, loaded=["m"], secret="word")

    async def use(fleet: Fleet, transport: MemoryTransport) -> None:
        assert names(fleet) == {"neuron-0": True}
        assert (await cold(fleet, "m")).base_url == "http://neuron-0.neuron.models.svc.cluster.local:13131"

        pods[:] = PODS[:2]
        await until(lambda: names(fleet) == {"neuron-0": True, "neuron-1": True})

        pods[:] = PODS[:1]
        await asyncio.sleep(0.15)
        assert names(fleet) == {"neuron-0": True, "neuron-1": True}

        del transport.apps["neuron-1.neuron.models.svc.cluster.local"]
        await until(lambda: names(fleet) == {"neuron-0": True})
        pods.clear()
        await asyncio.sleep(0.15)
        assert names(fleet) == {"neuron-0": True}

    fleet_of(pods, use, n0=up, n1=HostDouble(secret="word"))


def test_a_file_may_name_a_service_alone(tmp_path: pathlib.Path) -> None:
    """Then no neuron on this host is meant, names of nodes are not held to a list, and the common secret is theirs."""
    (tmp_path / "models.toml").write_text('[[models]]\nid = "m"\npinned_on = ["neuron-7"]\n')
    path = tmp_path / "cortex.toml"
    path.write_text(
        f'models_config = "models.toml"\n[gateway]\nneuron_secret = "word"\n[[discovery]]\nsrv = "{NAME}"\n'
    )

    config = load_config(path, {"CORTEX_DISCOVERY__0__EVERY_SECS": "5"})

    assert config.neurons == ()
    assert config.discovery == (Discovery(srv=NAME, every_secs=5, secret="word"),)
    assert "word" not in repr(config)
