"""The watch over one node: what is told of it, and that no fault of ours ends it."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from cortex_gateway.fleet.client import NeuronClient
from cortex_gateway.fleet.messages import Looking, Missed, Seen
from cortex_gateway.fleet.watch import Watcher
from tests.fakes.host_double import HostDouble
from tests.fakes.live_fleet import until
from tests.fakes.memory_transport import MemoryTransport

Told = Looking | Seen | Missed


def watch(apps: dict[str, HostDouble], tell: Callable[[Told], None], enough: Callable[[], object]) -> None:
    """Watch node `a` until there is `enough`; the watch must still be running then."""

    async def main() -> None:
        async with httpx.AsyncClient(transport=MemoryTransport(dict(apps))) as http:
            watcher = Watcher(client=NeuronClient(http, "a", "http://a"), tell=tell, every_secs=0.001)
            task = asyncio.create_task(watcher.run())
            await until(lambda: enough() or task.done())
            assert not task.done()
            assert watcher.looked.is_set()
            task.cancel()
            await asyncio.wait((task,))

    asyncio.run(main())


def test_an_unexpected_exception_is_a_miss_with_a_traceback_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that the gateway chokes on must not leave the node healthy on old news."""
    told: list[Told] = []

    class Choking(MemoryTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise TypeError("a bug of ours")

    async def main() -> None:
        async with httpx.AsyncClient(transport=Choking({})) as http:
            watcher = Watcher(client=NeuronClient(http, "a", "http://a"), tell=told.append, every_secs=0.001)
            task = asyncio.create_task(watcher.run())
            await until(lambda: len(told) >= 6 or task.done())
            assert not task.done()
            task.cancel()
            await asyncio.wait((task,))

    asyncio.run(main())

    misses = [one for one in told if isinstance(one, Missed)]
    assert len(misses) >= 2
    assert "TypeError: a bug of ours" in misses[0].reason
    assert "Traceback" in caplog.text


def test_an_owner_that_fails_on_an_answer_counts_it_as_a_miss(caplog: pytest.LogCaptureFixture) -> None:
    """What fails may be the taking of a good answer as well."""
    told: list[Told] = []

    def tell(event: Told) -> None:
        told.append(event)
        if isinstance(event, Seen):
            raise KeyError("devices")

    watch({"a": HostDouble()}, tell, lambda: sum(isinstance(one, Missed) for one in told) >= 2)

    assert "KeyError" in caplog.text


def test_an_owner_that_fails_on_everything_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    """Even then the watch goes on."""
    told: list[Told] = []

    def tell(event: Told) -> None:
        told.append(event)
        raise KeyError("everything")

    watch({"a": HostDouble()}, tell, lambda: len(told) >= 6)

    assert "could not be recorded" in caplog.text
