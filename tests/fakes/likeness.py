"""What doubles and the real things have in common, for mypy to hold both to. Nothing here runs."""

from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Protocol, Self

import httpx

from cortex_gateway.context import RequestContext
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.fleet.leases import Lease
from cortex_gateway.metrics import Metrics, RequestRecord
from cortex_gateway.placement.catalogue import ModelEntry
from cortex_gateway.placement.load_options import UNSAID, LoadOptions
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus
from neuron_jax.daemon.devices import DeviceSampling
from neuron_jax.hardware.discover import Sampler
from tests.fakes.fleet_double import FleetDouble, LeaseDouble, MetricsDouble
from tests.fakes.live_neuron import StillDevices


class LeaseLike(Protocol):
    """What a route does with a replica that it may use."""

    requested: str
    model: str
    node: str
    base_url: str
    cold: bool
    heard: Callable[[], int]

    def suspect(self, reason: str) -> None: ...

    def absent(self) -> None: ...

    def begun(self) -> None: ...

    def served(self) -> None: ...

    def failed(self, reason: str) -> None: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FleetLike(Protocol):
    """What the app and its routes ask of the fleet."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def acquire(self, model: str, context: RequestContext) -> LeaseLike: ...

    async def another(self, model: str, context: RequestContext, *, besides: Collection[str]) -> LeaseLike | None: ...

    async def send(self, request: httpx.Request) -> httpx.Response: ...

    def resolve(self, model: str) -> str: ...

    def locate_tokenizer(self, model: str) -> list[str]: ...

    def catalogue_entries(self) -> list[ModelEntry]: ...

    def health(self) -> dict[str, Any]: ...

    def snapshot(self) -> FleetSnapshot: ...

    async def load(
        self,
        model: str,
        *,
        node: str | None = None,
        options: LoadOptions = UNSAID,
        reload: bool = False,
        report: Callable[[LoadStatus], None] | None = None,
    ) -> None: ...

    async def unload(self, model: str, *, node: str | None = None) -> None: ...


class MetricsLike(Protocol):
    """What routes tell of requests."""

    def observe_request(self, record: RequestRecord) -> None: ...

    def observe_failure(self, model: str, node: str) -> None: ...

    def observe_retry(self, model: str, node: str) -> None: ...


def _leases(real: Lease, double: LeaseDouble) -> list[LeaseLike]:
    return [real, double]


def _fleets(real: Fleet, double: FleetDouble) -> list[FleetLike]:
    return [real, double]


def _metrics(real: Metrics, double: MetricsDouble) -> list[MetricsLike]:
    return [real, double]


def _devices(real: Sampler, double: StillDevices) -> list[DeviceSampling]:
    return [real, double]
