"""How to talk to a neuron: control routes of docs/wire.md section 1 over httpx, its failures mapped to our own errors here."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import msgspec
from attrs import evolve, frozen
from msgspec import Struct

from cortex_gateway import errors
from cortex_gateway.fleet.messages import LoadSpec, Observation
from cortex_gateway.placement.snapshot import (
    Device,
    Group,
    Limit,
    LoadStatus,
    ModelLoad,
    Rank,
    Replica,
    Status,
)

T = TypeVar("T")
CONNECT_SECS = 5.0
LOOK_SECS = 5.0
DENIED = (401, 403)
STATUSES: dict[str, Status] = {
    "loaded": "loaded",
    "loading": "loading",
    "reloading": "loading",
    "recovering": "recovering",
    "draining": "draining",
    "failed": "failed",
    "unloaded": "unloaded",
}


class DeviceWire(Struct):
    index: int
    name: str = ""
    kind: str = "cuda"
    vram_total_mb: int = 0


class RankWire(Struct):
    rank: int
    host: str = ""
    devices: list[int] = []
    pid: int | None = None
    phase: str = ""


class GroupWire(Struct):
    model_id: str
    role: str
    leader: str = ""
    world: int = 0
    tensor_parallel: int = 0
    ranks: list[RankWire] = []


class DiscoveryWire(Struct):
    hostname: str | None = None
    devices: list[DeviceWire] = []
    harnesses: list[str] = []
    groups: list[GroupWire] | None = None


class DeviceLoadWire(Struct):
    index: int
    vram_used_mb: int | None = None
    vram_free_mb: int | None = None
    utilization_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    energy_j: float | None = None


class ModelLoadWire(Struct):
    id: str
    in_flight: int = 0
    queue_depth: int = 0
    max_in_flight: int = 0
    max_queue_depth: int = 0
    rejected_queue_full: int = 0
    rejected_timeout: int = 0
    kv_budget_mb: int = 0
    kv_available_mb: int = 0
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0


class Health(Struct):
    uptime_secs: float = 0.0
    devices: list[DeviceLoadWire] = []
    models: list[ModelLoadWire] = []


class LimitWire(Struct):
    context: int | None = None
    input: int | None = None
    output: int | None = None


class ProgressWire(Struct):
    phase: str = "loading"
    done: int = 0
    total: int = 0
    unit: str = ""


class Servable(Struct):
    ok: bool = True
    reason: str | None = None
    detail: str | None = None


class ModelInfo(Struct):
    id: str
    harness: str = "jax"
    status: str = "loaded"
    devices: list[int] = []
    vram_used_mb: int | None = None
    vram_estimate_mb: int | None = None
    capabilities: list[str] | None = None
    limit: LimitWire | None = None
    tool_call: bool = False
    reasoning: bool = False
    servable: Servable | None = None
    offered: bool = True
    progress: ProgressWire | None = None
    last_error: Any = None
    quant: dict[str, Any] | None = None
    kv_dtype: dict[str, Any] | None = None
    deterministic: dict[str, Any] | None = None
    adapters: list[str] = []


@frozen
class NeuronClient:
    """One neuron. `http` is shared and stays the caller's to close."""

    http: httpx.AsyncClient
    name: str
    endpoint: str

    async def observe(self) -> Observation:
        """Look once. Raises UpstreamError when the node does not answer, or not as the wire says."""
        discovery = await self._get("/discovery", DiscoveryWire)
        health = await self._get("/health", Health)
        models = await self._get("/models", list[ModelInfo])
        return observation(discovery, health, models)

    async def load(self, spec: LoadSpec, *, timeout_secs: float, report: Callable[[LoadStatus], None]) -> bool:
        """Load and wait until it serves; False when it did before. Raises LoadFailed with the node's own message and kind."""
        body = {name: value for name, value in _spec_body(spec).items() if value is not None}
        timeout = httpx.Timeout(timeout_secs, connect=CONNECT_SECS)
        with self._seam("/models/load"):
            async with self.http.stream(
                "POST",
                f"{self.endpoint}/models/load",
                json=body,
                headers={"accept": "text/event-stream"},
                timeout=timeout,
            ) as response:
                if response.headers.get("content-type", "").startswith("text/event-stream"):
                    await self._follow(response, report)
                    return True
                return self._loaded_or_raise(response.status_code, await response.aread())

    async def unload(self, model: str, *, drain_secs: float) -> None:
        """Unload and wait until its memory is back. What is not loaded there counts as unloaded."""
        body = {"model_id": model, "drain_secs": drain_secs}
        timeout = httpx.Timeout(drain_secs + 60.0, connect=CONNECT_SECS)
        with self._seam("/models/unload"):
            response = await self.http.post(f"{self.endpoint}/models/unload", json=body, timeout=timeout)
        if response.status_code not in (200, 404):
            raise self._refused("the unload", response.status_code, response.content)

    async def reload(self, model: str, *, source: str | None, in_place: bool, timeout_secs: float) -> dict[str, Any]:
        """Put other weights in place while the model serves; which serve then. Raises LoadFailed with the node's own words."""
        body = {"model_id": model, "source": source, "in_place": in_place}
        timeout = httpx.Timeout(timeout_secs, connect=CONNECT_SECS)
        with self._seam("/models/reload"):
            response = await self.http.post(f"{self.endpoint}/models/reload", json=body, timeout=timeout)
            said = response.json()
        if response.status_code in DENIED:
            raise self._refused("the reload", response.status_code, response.content)
        if response.status_code != 200:
            raise load_failed(said if isinstance(said, dict) else {"error": str(said)})
        weights: dict[str, Any] = said.get("weights", {})
        return weights

    async def _get(self, path: str, kind: type[T]) -> T:
        with self._seam(path):
            response = await self.http.get(f"{self.endpoint}{path}", timeout=httpx.Timeout(LOOK_SECS))
        if response.status_code != 200:
            raise self._refused(path, response.status_code, response.content)
        try:
            return msgspec.json.decode(response.content, type=kind, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise errors.UpstreamMalformed(f"{self.name} answered {path} with {error}.") from error

    async def _follow(self, response: httpx.Response, report: Callable[[LoadStatus], None]) -> None:
        """Read to the end, for only then is the connection whole again; the verdict comes before it."""
        verdict: dict[str, Any] | None = None
        async for line in response.aiter_lines():
            event = msgspec.json.decode(line[5:], type=dict[str, Any]) if line.startswith("data:") else {}
            if "error" in event or event.get("status") == "loaded":
                verdict = event
            elif "phase" in event:
                report(_progress(msgspec.convert(event, ProgressWire, strict=False)))
        if verdict is None:
            raise errors.UpstreamReadFailed(f"{self.name} ended the load without saying how it went.")
        if "error" in verdict:
            raise load_failed(verdict)

    def _loaded_or_raise(self, status: int, content: bytes) -> bool:
        """False when it was loaded already, which is no failure."""
        if status == 200:
            return True
        if status in DENIED:
            raise self._refused("the load", status, content)
        try:
            body = json.loads(content)
        except ValueError:
            body = {"error": f"status {status}"}
        failed = load_failed(body if isinstance(body, dict) else {"error": str(body)})
        if "already loaded" not in failed.message:
            raise failed
        return False

    def _refused(self, what: str, status: int, content: bytes) -> errors.UpstreamError:
        if status in DENIED:
            return denied(self.name, content)
        return errors.UpstreamMalformed(
            f"{self.name} answered {what} with {status}: {content[:200].decode(errors='replace')}"
        )

    @contextmanager
    def _seam(self, what: str) -> Iterator[None]:
        """Everything that httpx and JSON may raise, as what it means here."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise errors.UpstreamUnreachable(
                f"{self.name} cannot be reached at {self.endpoint}: {_words(error)}"
            ) from error
        except httpx.TimeoutException as error:
            raise errors.UpstreamReadFailed(f"{self.name} did not answer {what} in time.") from error
        except httpx.HTTPError as error:
            raise errors.UpstreamReadFailed(f"{self.name} broke off {what}: {_words(error)}") from error
        except (ValueError, msgspec.ValidationError) as error:
            raise errors.UpstreamMalformed(f"{self.name} answered {what} with {error}.") from error


def observation(discovery: DiscoveryWire, health: Health, models: list[ModelInfo]) -> Observation:
    """What three answers of a neuron say together."""
    loads = {load.index: load for load in health.devices}
    traffic = {one.id: one for one in health.models}
    groups = tuple(_group(one) for one in discovery.groups or ())
    led: dict[str, Group] = {}
    for one in groups:
        if one.role == "leader":
            led[one.model] = _joined(led[one.model], one) if one.model in led else one
    return Observation(
        hostname=discovery.hostname,
        harnesses=tuple(discovery.harnesses),
        devices=tuple(_device(device, loads.get(device.index)) for device in discovery.devices),
        replicas=tuple(
            one for model in models for one in _replica(model, traffic.get(model.id), led.get(model.id)).with_adapters()
        ),
        groups=groups,
        uptime_secs=health.uptime_secs,
    )


def denied(name: str, content: bytes) -> errors.UpstreamDenied:
    """A neuron's 401 or 403, which is about this gateway and nobody behind it, in the neuron's words."""
    try:
        words = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        words = content[:200].decode(errors="replace")
    return errors.UpstreamDenied(f"{name} does not let this gateway in: {words}")


def load_failed(body: dict[str, Any]) -> errors.LoadFailed:
    """The node's error in any of its shapes: `{"error": {kind, message, …}}`, `{"error": str, "code"}`, `{"error": str}`."""
    error = body.get("error")
    if isinstance(error, dict):
        extras = {name: value for name, value in error.items() if name not in ("message", "retry_after")}
        cause = error.get("message") or error.get("cause") or error.get("kind") or "no reason given"
        return errors.LoadFailed(str(cause), **extras)
    return errors.LoadFailed(str(error), kind=str(body.get("code") or "engine_failed"))


def _spec_body(spec: LoadSpec) -> dict[str, Any]:
    return {
        "model_id": spec.model_id,
        "source": spec.source,
        "harness": spec.harness,
        "devices": list(spec.devices) or None,
        "quant": "auto",
        "tensor_parallel": 1,
        **spec.named,
    }


def _device(device: DeviceWire, load: DeviceLoadWire | None) -> Device:
    """A node that does not say what is free is taken at its word about what is used, and the other way round."""
    load = load or DeviceLoadWire(index=device.index)
    used, free, total = load.vram_used_mb, load.vram_free_mb, device.vram_total_mb
    free = free if free is not None else total - (used or 0)
    return Device(
        index=device.index,
        name=device.name,
        kind=device.kind,
        vram_total_mb=total,
        vram_free_mb=free,
        vram_used_mb=used if used is not None else total - free,
        utilization_pct=load.utilization_pct,
        temp_c=load.temp_c,
        power_w=load.power_w,
        energy_j=load.energy_j,
    )


def _group(wire: GroupWire) -> Group:
    """Whatever is no leader has only lent something."""
    return Group(
        model=wire.model_id,
        role="leader" if wire.role == "leader" else "member",
        leader=wire.leader,
        world=wire.world,
        tensor_parallel=wire.tensor_parallel,
        ranks=tuple(
            Rank(rank=one.rank, host=one.host, devices=tuple(one.devices), pid=one.pid, phase=one.phase)
            for one in wire.ranks
        ),
    )


def _joined(first: Group, second: Group) -> Group:
    """Two replicas of one model, as far as memory and devices go."""
    return evolve(
        first,
        world=first.world + second.world,
        tensor_parallel=first.tensor_parallel + second.tensor_parallel,
        ranks=first.ranks + second.ranks,
    )


def _replica(info: ModelInfo, load: ModelLoadWire | None, group: Group | None) -> Replica:
    servable = info.servable or Servable()
    return Replica(
        model=info.id,
        status=STATUSES.get(info.status, "loaded"),
        harness=info.harness,
        devices=tuple(info.devices),
        vram_used_mb=info.vram_used_mb,
        vram_estimate_mb=info.vram_estimate_mb,
        capabilities=tuple(info.capabilities or ()),
        limit=_limit(info.limit),
        tool_call=info.tool_call,
        reasoning=info.reasoning,
        offered=info.offered,
        servable=servable.ok,
        unservable_reason=servable.reason,
        unservable_detail=servable.detail,
        progress=_progress(info.progress) if info.progress else None,
        last_error=None if info.last_error is None else str(info.last_error),
        quant=info.quant,
        kv_dtype=info.kv_dtype,
        deterministic=info.deterministic,
        adapters=tuple(info.adapters),
        group=group,
        load=ModelLoad(**{name: value for name, value in msgspec.structs.asdict(load).items() if name != "id"})
        if load
        else ModelLoad(),
    )


def _limit(limit: LimitWire | None) -> Limit | None:
    """Zero and less mean that the node does not know."""
    if limit is None:
        return None
    return Limit(context=_positive(limit.context), input=_positive(limit.input), output=_positive(limit.output))


def _positive(number: int | None) -> int | None:
    return number if number and number > 0 else None


def _progress(wire: ProgressWire) -> LoadStatus:
    return LoadStatus(phase=wire.phase, done=wire.done, total=wire.total, unit=wire.unit)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
