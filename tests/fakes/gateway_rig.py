"""A gateway in memory: neuron doubles behind the real app, a client in front, and the means to watch both sides."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx
import msgspec
from attrs import define

from cortex_gateway.answers import Answers, AnswerStore, Bounds
from cortex_gateway.app import create_app
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config, GatewayConfig
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.sse import SseEvent, SseParser
from tests.fakes.fleet_double import FleetDouble, MetricsDouble
from tests.fakes.memory_transport import MemoryTransport
from tests.fakes.neuron_double import Answer, NeuronDouble

HI = [{"role": "user", "content": "hi"}]
CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
RESPONSES = "/v1/responses"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "demo", "messages": HI},
    COMPLETIONS: {"model": "demo", "prompt": "hi"},
    MESSAGES: {"model": "demo", "messages": HI, "max_tokens": 9},
    RESPONSES: {"model": "demo", "input": "hi"},
}


class Sent(list[Any]):
    """ASGI messages as they come; `begun` is set with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()


@define
class Rig:
    neuron: NeuronDouble
    fleet: FleetDouble
    metrics: MetricsDouble
    client: httpx.AsyncClient
    app: Any

    async def post(self, path: str, /, **fields: Any) -> httpx.Response:
        return await self.client.post(path, json={**BODIES.get(path, {}), **fields})

    async def post_raw(self, path: str, content: Any, **headers: str) -> httpx.Response:
        """Any bytes, under the name of JSON."""
        return await self.client.post(path, content=content, headers={"content-type": "application/json", **headers})

    async def stream(self, path: str, /, **fields: Any) -> AsyncIterator[bytes]:
        """The chunks of a streamed answer as they come; ending early is the client going away."""
        request = self.client.build_request(
            "POST", path, json={**BODIES.get(path, BODIES[CHAT]), "stream": True, **fields}
        )
        response = await self.client.send(request, stream=True)
        try:
            async for chunk in response.aiter_raw():
                yield chunk
        finally:
            await response.aclose()

    async def asgi(
        self, request: Mapping[str, Any], *messages: Mapping[str, Any], sent: "Sent | None" = None
    ) -> "Sent":
        """What the app sends, into `sent` as it comes, for a scope and a body that may come in pieces, or never."""
        inbox = list(messages)
        sent = Sent() if sent is None else sent

        async def receive() -> Any:
            return inbox.pop(0) if inbox else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)
            sent.begun.set()

        scope = {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "query_string": b"",
            "root_path": "",
            **request,
        }
        headers = [(b"host", b"gw"), (b"content-type", b"application/json")]
        await self.app({"headers": headers, "server": ("gw", 80), "client": None, "state": {}, **scope}, receive, send)
        return sent


def run(
    scenario: Callable[[Rig], Awaitable[None]],
    *answers: Answer,
    nodes: Mapping[str, NeuronDouble | None] | None = None,
    settings: GatewayConfig | None = None,
    keep_alive_seconds: float = 5.0,
    guard: Guard | None = None,
    dialects: tuple[Dialect, ...] | None = None,
    store: AnswerStore | None = None,
    **fleet: Any,
) -> None:
    """Run `scenario` against a fresh gateway called "gw". A node given as None refuses connections.

    Without a `guard` there is no key. A test of what a client hears in the meantime needs another `keep_alive_seconds`: on a
    slow machine every wait is long.
    """

    async def main() -> None:
        neuron = NeuronDouble(models=["demo", "org/demo"], answers=list(answers) or [Answer()])
        hosts = {"one": neuron} if nodes is None else dict(nodes)
        there = {name: host for name, host in hosts.items() if host is not None}
        double = FleetDouble(MemoryTransport(dict(there)), nodes=list(hosts), **fleet)
        metrics = MetricsDouble()
        kept = Answers(store or AnswerStore(None, Bounds(keep_secs=3600, max_bytes=1 << 20)))
        config = Config(gateway=settings or GatewayConfig(hosts=("gw",)))
        app = create_app(
            double,  # type: ignore[arg-type]
            metrics,
            config,
            guard or Guard(),
            dialects=dialects,
            keep_alive_seconds=keep_alive_seconds,
            answers=kept,
        )
        transport = MemoryTransport({"gw": app})
        async with httpx.AsyncClient(transport=transport, base_url="http://gw") as client:
            await scenario(Rig(next(iter(there.values()), neuron), double, metrics, client, app))
        await double.close()
        await kept.close()
        assert double.in_flight == 0, "every lease is given back"
        assert asyncio.all_tasks() == {asyncio.current_task()}, "no task is left"

    asyncio.run(main())


def events(raw: bytes) -> list[SseEvent]:
    return SseParser().feed(raw)


def payloads(raw: bytes) -> list[Any]:
    """The JSON of every event but `[DONE]`."""
    return [msgspec.json.decode(event.data) for event in events(raw) if event.data != b"[DONE]"]


async def settled() -> None:
    """Let everything that can run, run."""
    for _ in range(50):
        await asyncio.sleep(0)
