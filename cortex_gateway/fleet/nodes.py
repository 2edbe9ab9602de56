"""The way to every node: one HTTP client, what each is shown, who looks at each, and who asks name servers for more."""

import asyncio
from collections.abc import Callable

import httpx

from cortex_gateway.config import Config, Neuron
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.client import CONNECT_SECS, NeuronClient
from cortex_gateway.fleet.credentials import showing, shown
from cortex_gateway.fleet.discovery import Finder, Resolve
from cortex_gateway.fleet.tasks import begun
from cortex_gateway.fleet.watch import Watcher

Tell = Callable[[m.Looking | m.Seen | m.Missed | m.Listed], None]


class Nodes:
    """Lives in one event loop from `start` to `close`. What is seen is told, and decided elsewhere."""

    def __init__(self, config: Config, transport: httpx.AsyncBaseTransport, resolve: Resolve, tell: Tell) -> None:
        self._config = config
        self._resolve = resolve
        self._tell = tell
        self._transport = transport
        self._shown = shown(config.neurons)
        self._credentials = showing(self._shown)
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(None, connect=CONNECT_SECS),
            trust_env=False,
            event_hooks={"request": self._credentials},
        )
        self._watchers: dict[str, Watcher] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._finding: list[asyncio.Task[None]] = []

    async def start(self, known: dict[str, str]) -> None:
        """Begin to watch the nodes that are known, by name with their addresses, and those that name servers name. Wait until
        each has been looked at."""
        for node, endpoint in known.items():
            self._watch(node, endpoint)
        finders = [Finder(service=one, tell=self._listed, resolve=self._resolve) for one in self._config.discovery]
        self._finding = [begun(one.run(), f"find {one.service.srv}") for one in finders]
        await asyncio.gather(*(one.asked.wait() for one in finders))
        await asyncio.gather(*(one.looked.wait() for one in self._watchers.values()))

    def _listed(self, service: str, neurons: tuple[Neuron, ...]) -> None:
        self._tell(m.Listed(service=service, neurons=neurons))

    def join(self, neuron: Neuron) -> None:
        """Watch it from now on."""
        self._shown.update(shown([neuron]))
        self._watch(neuron.name, neuron.endpoint)

    def _watch(self, node: str, endpoint: str) -> None:
        it = self._config.gateway
        self._watchers[node] = Watcher(
            client=NeuronClient(self._client, node, endpoint),
            tell=self._tell,
            every_secs=it.watch_secs,
            within_secs=it.look_timeout_secs,
        )
        self._watching[node] = begun(self._watchers[node].run(), f"watch {node}")

    def part(self, node: str) -> None:
        """Watch it no more."""
        self._watching.pop(node).cancel()
        self._watchers.pop(node).looked.set()

    def look(self, *nodes: str) -> None:
        """Look at these, or at all, now instead of at the next turn."""
        for node in nodes or self._watchers:
            self._watchers[node].poked.set()

    def client(self, node: str) -> NeuronClient:
        return self._watchers[node].client

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Ask a node; the body of its answer is not read yet. Raises httpx.TransportError.

        Not by the client: its cookies and redirects, which no node has, cost as much as all else that sending takes.
        """
        for show in self._credentials:
            await show(request)
        return await self._transport.handle_async_request(request)

    async def close(self) -> None:
        """Stop watching, close every connection."""
        tasks = [*self._finding, *self._watching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()
