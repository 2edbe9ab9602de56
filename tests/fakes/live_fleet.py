"""A fleet in front of doubles of hosts, with an in-memory line between them, and nothing left over in the end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from tests.fakes.contexts import asked
from tests.fakes.host_double import HostDouble
from tests.fakes.memory_transport import MemoryTransport

Use = Callable[[Fleet, MemoryTransport], Awaitable[None]]


@contextlib.asynccontextmanager
async def running(
    hosts: dict[str, HostDouble], watch_secs: float = 0.05, look_timeout_secs: float = 5.0, **more: Any
) -> AsyncIterator[tuple[Fleet, MemoryTransport]]:
    """A fleet in front of `hosts`, and the line between them."""
    config = Config(
        gateway=GatewayConfig(watch_secs=watch_secs, look_timeout_secs=look_timeout_secs),
        neurons=tuple(Neuron(name=name, endpoint=f"http://{name}") for name in hosts),
        **more,
    )
    transport = MemoryTransport(dict(hosts))
    fleet = Fleet(config, Metrics(), transport=transport)
    await fleet.start()
    try:
        yield fleet, transport
    finally:
        await fleet.close()


def run(hosts: dict[str, HostDouble], use: Use, **more: Any) -> None:
    async def main() -> None:
        async with running(hosts, **more) as (fleet, transport):
            await use(fleet, transport)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left: {left}"

    asyncio.run(main())


async def until(fact: Callable[[], object]) -> None:
    """Let the others work until `fact` holds."""
    async with asyncio.timeout(5):
        while not fact():  # noqa: ASYNC110 -- the fact is not an event
            await asyncio.sleep(0)


async def cold(fleet: Fleet, model: str) -> Any:
    """Take and give back."""
    async with await fleet.acquire(model, asked("r")) as lease:
        return lease
