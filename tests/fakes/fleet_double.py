"""Stands in for the fleet at its border: leases from a list of nodes, no watching, no residency, every call recorded."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
from attrs import define, field

from cortex_gateway.context import RequestContext
from cortex_gateway.errors import ModelNotFound
from cortex_gateway.metrics import RequestRecord
from cortex_gateway.placement.catalogue import Location, ModelEntry
from cortex_gateway.placement.decisions import Policy
from cortex_gateway.placement.outlook import Outlook, outlook
from cortex_gateway.placement.snapshot import FleetSnapshot, Limit, LoadStatus, ModelConfig, Node, Replica


@define
class LeaseDouble:
    requested: str
    model: str
    node: str
    base_url: str
    cold: bool
    fleet: "FleetDouble"
    heard: Callable[[], int] = lambda: 0

    def suspect(self, reason: str) -> None:
        self.fleet.suspected.append(self.node)

    def absent(self) -> None:
        self.fleet.absent.append(self.node)

    def begun(self) -> None:
        self.fleet.verdicts.append((self.node, "begun"))

    def served(self) -> None:
        self.fleet.verdicts.append((self.node, "served"))

    def failed(self, reason: str) -> None:
        self.fleet.verdicts.append((self.node, "failed"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.fleet.in_flight -= 1


@define
class FleetDouble:
    """Nodes are taken in turn, suspected ones last. `gate` holds every acquire back; `error` refuses it afterwards."""

    transport: httpx.AsyncBaseTransport
    nodes: Sequence[str] = ("one",)
    aliases: Mapping[str, str] = field(factory=lambda: {"alias": "org/demo"})
    models: Sequence[str] = ("demo", "org/demo")
    gate: asyncio.Event | None = None
    waiting_for: LoadStatus | None = None
    error: Exception | None = None
    cold: bool = False
    suspected: list[str] = field(factory=list)
    absent: list[str] = field(factory=list)
    verdicts: list[tuple[str, str]] = field(factory=list)  # (node, what its answer said of it)
    acquired: int = 0
    abandoned: int = 0  # acquires that were cancelled while they waited
    in_flight: int = 0
    contexts: list[RequestContext] = field(factory=list)  # of every acquire
    calls: list[tuple[str, dict[str, Any]]] = field(factory=list)

    async def start(self) -> None:
        self.calls.append(("start", {}))

    async def close(self) -> None:
        self.calls.append(("close", {}))
        await self.transport.aclose()

    async def send(self, request: httpx.Request) -> httpx.Response:
        return await self.transport.handle_async_request(request)

    async def acquire(self, model: str, context: RequestContext) -> LeaseDouble:
        self.contexts.append(context)
        resolved = self.resolve(model)
        await self._held()
        fit = [node for node in self.nodes if node not in self.suspected] or list(self.nodes)
        node = fit[self.acquired % len(fit)]
        self.acquired += 1
        self.in_flight += 1
        return LeaseDouble(model, resolved, node, f"http://{node}", self.cold, self)

    def waits(self, model: str) -> LoadStatus | None:
        return self.waiting_for

    async def another(self, model: str, context: RequestContext, *, besides: Collection[str]) -> LeaseDouble | None:
        left = [node for node in self.nodes if node not in besides]
        if not left:
            return None
        self.acquired += 1
        self.in_flight += 1
        return LeaseDouble(model, self.resolve(model), left[0], f"http://{left[0]}", False, self)

    async def _held(self) -> None:
        try:
            if self.gate:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.abandoned += 1
            raise
        if self.error:
            raise self.error

    def resolve(self, model: str) -> str:
        untagged = model.removesuffix(":latest")
        resolved = self.aliases.get(untagged, untagged)
        if resolved not in self.models:
            raise ModelNotFound(model, nearest=[name for name in self.models if name[:2] == model[:2]])
        return resolved

    def locate_tokenizer(self, model: str) -> list[str]:
        return [f"http://{node}" for node in self.nodes]

    def catalogue_entries(self) -> list[ModelEntry]:
        limit = Limit(context=8192, output=1024)
        at = (Location(node="one", status="loaded", vram_estimate_mb=300),)
        names = [*self.models, *self.aliases]
        return [
            ModelEntry(id=name, alias_of=self.aliases.get(name), loaded=True, locations=at, limit=limit)
            for name in sorted(names)
        ]

    def health(self) -> dict[str, Any]:
        return {"status": "ok", "nodes": {"healthy": len(self.nodes), "total": len(self.nodes)}}

    def snapshot(self) -> FleetSnapshot:
        replica = Replica(model="demo", status="loaded")
        return FleetSnapshot(nodes=(Node(name="one", endpoint="http://one", healthy=True, replicas=(replica,)),))

    async def load(self, model: str, *, report: Callable[[LoadStatus], None] | None = None, **asked: Any) -> None:
        self.resolve(model)
        self.calls.append(("load", {"model": model, **asked}))
        await self._held()
        if report:
            report(LoadStatus(phase="weights", done=1, total=2, unit="bytes"))
            await asyncio.sleep(0)

    def outlook(self, model: str, **asked: Any) -> Outlook:
        self.calls.append(("outlook", {"model": model, **asked}))
        return outlook(ModelConfig(id=self.resolve(model)), self.snapshot(), Policy())

    async def unload(self, model: str, **asked: Any) -> None:
        self.resolve(model)
        self.calls.append(("unload", {"model": model, **asked}))

    async def reload(self, model: str, **asked: Any) -> dict[str, Any]:
        self.resolve(model)
        self.calls.append(("reload", {"model": model, **asked}))
        return {"one": {"source": "tuned", "digest": "0123456789abcdef", "reloads": 1}}


@define
class MetricsDouble:
    """Keeps the records of finished requests."""

    records: list[RequestRecord] = field(factory=list)
    failures: list[tuple[str, str]] = field(factory=list)
    retries: list[tuple[str, str]] = field(factory=list)

    def observe_failure(self, model: str, node: str) -> None:
        self.failures.append((model, node))

    def observe_retry(self, model: str, node: str) -> None:
        self.retries.append((model, node))

    def observe_request(self, record: RequestRecord) -> None:
        self.records.append(record)
