"""Stands in for a neuron host with memory: loads, refuses, unloads and serves by the wire, holding loads back on demand."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import define, field

from tests.fakes.neuron_double import NeuronDouble, Receive, Seen, Send, _body, _disconnected, _headers, _json

MIB = 1024 * 1024


@define
class HostDouble(NeuronDouble):
    """`sizes` is what it could load, in MiB; `loaded` what it has. Generation is NeuronDouble's.

    A load that names `hosts` makes a group of it and its `peers`, each with all its devices; MiB are those of each device.

    Attributes:
        peers: name -> the other hosts that may lend it devices.
        gates: model -> an event that its load waits for, after it has told one progress line.
        failures: model -> error body that its load ends with.
        pending: model -> requests in flight that it reports.
        silent: it answers nothing for ever, as a hung host does.
        late: loads that it refuses after an unload, until the memory is back; `refused` counts them.
        failed: models that it has only ever failed to load.
        done: what it was asked to do, in order.
    """

    sizes: dict[str, int] = field(factory=dict)
    loaded: list[str] = field(factory=list)
    hostname: str = "double"
    cards: int = 1
    peers: dict[str, "HostDouble"] = field(factory=dict)
    total_mb: int = 10_000
    gates: dict[str, asyncio.Event] = field(factory=dict)
    failures: dict[str, Mapping[str, Any]] = field(factory=dict)
    pending: dict[str, int] = field(factory=dict)
    late: int = 0
    returning: int = 0  # MiB
    refused: int = 0
    failed: list[str] = field(factory=list)
    silent: bool = False
    plain: bool = False  # answers loads without a stream, as the predecessor does
    done: list[str] = field(factory=list)
    specs: list[dict[str, Any]] = field(factory=list)

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.silent:
            await _until_gone(receive, asyncio.Event())
            return
        if scope["type"] == "http" and scope["path"] == "/models/load":
            await self._load(Seen(scope["path"], _headers(scope), await _body(receive)), receive, send)
        else:
            await NeuronDouble.__call__(self, scope, receive, send)

    @property
    def free_mb(self) -> int:
        lent = (group["model_id"] for group in self.groups if group["role"] == "member")
        return self.total_mb - sum(self.sizes[name] for name in (*self.loaded, *lent)) - self.returning

    def _control(self, request: Seen) -> tuple[int, Any]:
        if request.path == "/discovery":
            card = {"name": "double", "kind": "cuda", "vram_total_mb": self.total_mb}
            devices = [{"index": index, **card} for index in range(self.cards)]
            return 200, {"hostname": self.hostname, "devices": devices, "harnesses": ["jax"], "groups": self.groups}
        if request.path == "/health":
            return 200, self._health()
        if request.path == "/models":
            return 200, [*map(self._model, self.sizes), *map(self._failed, self.failed)]
        if request.path == "/models/unload":
            return self._unload(request.body["model_id"])
        return NeuronDouble._control(self, request)

    def _health(self) -> dict[str, Any]:
        memory = {"vram_used_mb": self.total_mb - self.free_mb, "vram_free_mb": self.free_mb}
        loads = [{"id": name, "in_flight": self.pending.get(name, 0), "max_in_flight": 4} for name in self.loaded]
        devices = [{"index": index, **memory, "utilization_pct": 50, "temp_c": 40} for index in range(self.cards)]
        return {"uptime_secs": 5, "devices": devices, "models": loads}

    def _model(self, name: str) -> dict[str, Any]:
        if name not in self.loaded:
            return {"id": name, "status": "unloaded", "devices": []}
        spread = next((group["tensor_parallel"] for group in self.groups if group["model_id"] == name), self.cards)
        used = self.sizes[name] * spread
        return {"id": name, "status": "loaded", "devices": list(range(self.cards)), "vram_used_mb": used}

    def _failed(self, name: str) -> dict[str, Any]:
        """A neuron keeps a load that failed in its list, and says whether it has the model otherwise."""
        return {"id": name, "status": "failed", "devices": [], "offered": False, "last_error": "no such model"}

    def _unload(self, name: str) -> tuple[int, Any]:
        if name not in self.loaded:
            return 404, {"error": "not loaded"}
        self.done.append(f"unload {name}")
        self.loaded.remove(name)
        self.returning, self.refused = (self.sizes[name], 0) if self.late else (0, self.refused)
        for host in (self, *self.peers.values()):
            host.groups = [group for group in host.groups if group["model_id"] != name]
        return 200, {"status": "unloaded"}

    async def _load(self, request: Seen, receive: Receive, send: Send) -> None:
        name = request.body["model_id"]
        self.done.append(f"load {name}")
        self.specs.append(request.body)
        if self.plain or name in self.loaded:
            status, answer = self._loaded(name, request.body.get("hosts", ()))
            await _json(send, status, msgspec.json.encode(answer))
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await _say(send, {"phase": "weights", "done": 1, "total": 4, "unit": "bytes"}, more=True)
        if name in self.gates and await _until_gone(receive, self.gates[name]):
            return
        await _say(send, self._loaded(name, request.body.get("hosts", ()))[1], more=False)

    def _loaded(self, name: str, lenders: Sequence[str]) -> tuple[int, Mapping[str, Any]]:
        if name in self.failures:
            if name not in self.sizes and name not in self.failed:
                self.failed.append(name)
            return 422, self.failures[name]
        if name in self.loaded:
            return 400, {"error": f"{name} is already loaded"}
        if self.returning and self.refused == self.late:
            self.returning = 0
        if self.sizes.get(name, 0) > self.free_mb:
            self.refused += 1
            plan = [{"what": "weights", "bytes": self.sizes[name] * MIB}]
            return 422, {"error": {"kind": "does_not_fit", "message": f"{name} does not fit", "plan": plan}}
        self.sizes.setdefault(name, 0)
        self.loaded.append(name)
        if lenders:
            self._lead(name, [self, *(self.peers[lender] for lender in lenders)])
        return 200, {"status": "loaded"}

    def _lead(self, name: str, hosts: list["HostDouble"]) -> None:
        """The leader tells of all ranks, a member of its own."""
        ranks = [
            {
                "rank": rank,
                "host": host.hostname,
                "devices": list(range(host.cards)),
                "pid": 100 + rank,
                "phase": "ready",
            }
            for rank, host in enumerate(hosts)
        ]
        cards = sum(host.cards for host in hosts)
        for host in hosts:
            host.sizes.setdefault(name, self.sizes[name])
            group = {"model_id": name, "leader": self.hostname, "world": len(hosts), "tensor_parallel": cards}
            mine = (
                {"role": "leader", "ranks": ranks}
                if host is self
                else {"role": "member", "ranks": [ranks[hosts.index(host)]]}
            )
            host.groups.append(group | mine)


async def _until_gone(receive: Receive, gate: asyncio.Event) -> bool:
    """Wait for the gate; True when the client went away before it opened."""
    opened, gone = asyncio.ensure_future(gate.wait()), asyncio.ensure_future(_disconnected(receive))
    await asyncio.wait((opened, gone), return_when=asyncio.FIRST_COMPLETED)
    left = not opened.done()
    opened.cancel()
    gone.cancel()
    await asyncio.wait((opened, gone))
    return left


async def _say(send: Send, value: Mapping[str, Any], *, more: bool) -> None:
    data = b"data: %b\n\n" % msgspec.json.encode(value)
    await send({"type": "http.response.body", "body": data, "more_body": more})
