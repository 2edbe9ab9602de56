"""What the control routes show of the host: JSON records of docs/wire.md section 1; reads, never changes."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import attrs
from litestar import Response

from neuron_jax.common.addresses import Address, parse_address
from neuron_jax.daemon.adapters import folders_of
from neuron_jax.daemon.launch import KV_ROW, TOTAL_ROW
from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.daemon.model_files import ModelFiles, Offered
from neuron_jax.daemon.model_text import CAPABILITIES, Abilities, Broken, ModelFacts, read_facts
from neuron_jax.daemon.replica import Replica
from neuron_jax.daemon.resident import ResidentModel
from neuron_jax.daemon.responses import json_response
from neuron_jax.daemon.service import NeuronServices
from neuron_jax.daemon.shares import measured
from neuron_jax.daemon.status import ModelStage, ReplicaStatus
from neuron_jax.hardware.records import DeviceLoad
from neuron_jax.workers.engine_client import Rank
from neuron_jax.workers.frames import EngineSpec, Progress
from neuron_jax.workers.process import EngineProcess

MIB = 1 << 20
Json = dict[str, Any]


def version(neuron: NeuronServices) -> Json:
    """GET /version."""
    return attrs.asdict(neuron.build)


def discovery(neuron: NeuronServices) -> Json:
    """GET /discovery. `max_prompt_tokens` is that of the most generous loaded model, 0 while none is loaded."""
    hardware = neuron.lifecycle.devices.hardware
    limits = [resident.max_context - 1 for resident in neuron.lifecycle.residents if resident.serving]
    found = attrs.asdict(hardware)
    found["devices"] = [device | _lost(neuron.lifecycle, device["index"]) for device in found["devices"]]
    if found.get("cuda_unavailable_reason") is None:
        found.pop("cuda_unavailable_reason", None)
    return {
        **found,
        "harnesses": ["jax"],
        "max_prompt_tokens": max(limits, default=0),
        "groups": groups(neuron.lifecycle, hardware.hostname),
    }


def groups(lifecycle: Lifecycle, hostname: str) -> list[Json]:
    """The models here that several processes serve: those led from here, and other neurons' ranks that run here."""
    serving = [replica.client for resident in lifecycle.residents for replica in resident.replicas if replica.client]
    led = [_group(one.spec, "leader", hostname, one.ranks) for one in serving if one.spec.group is not None]
    lent: dict[str, list[EngineProcess]] = {}
    for process in lifecycle.lender.lent:
        lent.setdefault(process.spec.model_id, []).append(process)
    return led + [_group(several[0].spec, "member", _leader(several[0].spec), several) for several in lent.values()]


def _leader(spec: EngineSpec) -> str:
    assert spec.group is not None
    return parse_address(spec.group.coordinator).host


def _group(spec: EngineSpec, role: str, leader: str, ranks: Sequence[Rank]) -> Json:
    assert spec.group is not None
    return {
        "model_id": spec.model_id,
        "role": role,
        "leader": leader,
        "world": spec.group.world,
        "tensor_parallel": spec.tensor_parallel,
        "ranks": [
            {"rank": rank.rank, "host": rank.host, "devices": list(rank.devices), "pid": rank.pid, "phase": rank.phase}
            for rank in ranks
        ],
    }


async def health(neuron: NeuronServices) -> Json:
    """GET /health."""
    activation = neuron.lifecycle.default_models
    loads = await neuron.lifecycle.devices.look()
    return {
        "uptime_secs": int(time.monotonic() - neuron.started),
        "devices": [device_load(neuron.lifecycle, load) for load in loads],
        "activation": {
            "state": activation.state,
            "pending": activation.pending,
            "in_progress": activation.in_progress,
            "completed": activation.completed,
            "failed": [{"model_id": model, "error": error} for model, error in activation.failed],
        },
        "models": [model_load(resident) for resident in neuron.lifecycle.residents if resident.serving],
    }


def device_load(lifecycle: Lifecycle, load: DeviceLoad) -> Json:
    """How busy one device is, and which of the processes on it are ours; `model` is None for other programs'."""
    holders = {pid: given.model for given in lifecycle.devices.grants.values() for pid in given.pids}
    processes = [{"pid": one.pid, "used_mb": one.used_mb, "model": holders.get(one.pid)} for one in load.processes]
    return {**attrs.asdict(load), "processes": processes, "lost": None} | _lost(lifecycle, load.index)


def _lost(lifecycle: Lifecycle, index: int) -> Json:
    reason = lifecycle.devices.lost.get(index)
    return {} if reason is None else {"lost": reason}


def model_load(resident: ResidentModel) -> Json:
    """How busy one model is. KV memory is counted in pages of the plan's pool."""
    queue, load = resident.admission, resident.load
    kv = _planned(resident, KV_ROW) or 0
    share = load.free_pages / load.pages if load.pages else 1.0
    return {
        "id": resident.id,
        "in_flight": queue.in_flight,
        "queue_depth": queue.queued,
        "max_in_flight": queue.slots,
        "max_queue_depth": queue.max_queue_depth,
        "rejected_queue_full": queue.counts.rejected_queue_full,
        "rejected_timeout": queue.counts.rejected_timeout,
        "kv_budget_mb": kv // MIB,
        "kv_available_mb": int(kv * share) // MIB,
        "tok_s_prefill": load.prefill_rate,
        "tok_s_decode": load.decode_rate,
    }


async def models(lifecycle: Lifecycle) -> list[Json]:
    """GET /models: what is loaded first, then what could be."""
    offers = await lifecycle.files.offered()
    loaded = {resident.id for resident in lifecycle.residents}
    known = {one.entry.id for one in offers}
    return [
        *(resident_info(lifecycle, resident) | {"offered": resident.id in known} for resident in lifecycle.residents),
        *(unloaded_info(lifecycle.files, one) for one in offers if one.entry.id not in loaded),
    ]


def endpoint(lifecycle: Lifecycle, model_id: str, host: str) -> Response[bytes]:
    """GET /models/{id}/endpoint: this daemon itself, under the name the caller reached it by."""
    resident = lifecycle.resident(model_id)
    if resident is None or not resident.serving:
        return json_response({"error": f"{model_id} is not loaded"}, 404)
    server = lifecycle.config.server
    scheme = "https" if server.tls_cert else "http"
    return json_response({"url": f"{scheme}://{host or Address(server.host, server.port)}"})


async def capabilities(lifecycle: Lifecycle, model_id: str) -> Response[bytes]:
    """GET /models/{id}/capabilities: 404 means that nothing here tells, which is not an empty list."""
    resident = lifecycle.resident(model_id)
    if resident is not None and resident.known_text is not None:
        return json_response({"capabilities": resident.known_text.abilities.capabilities})
    path = await asyncio.to_thread(lifecycle.catalogue.locate, model_id)
    if path is None and resident is None:
        return json_response({"error": f"nothing is known about {model_id} here"}, 404)
    facts = None if path is None else await asyncio.to_thread(read_facts, path)
    able = facts.abilities if isinstance(facts, ModelFacts) else Abilities()
    return json_response({"capabilities": able.capabilities})


def resident_info(lifecycle: Lifecycle, resident: ResidentModel) -> Json:
    """ModelInfo of something loaded, loading or failed."""
    status, client = resident.status, resident.client
    abilities = resident.known_text.abilities if resident.known_text is not None else Abilities()
    info = _info(resident.id, lifecycle.catalogue.aliases(resident.id), status.stage, abilities)
    planned = _planned(resident, TOTAL_ROW)
    measured = _measured(lifecycle, resident)
    info |= {
        "devices": list(resident.devices),
        "vram_used_mb": planned // MIB if measured is None and planned is not None else measured,
        "vram_planned_mb": None if planned is None else planned // MIB,
        "restarts": status.restarts,
    }
    if resident.replicas:
        told = zip(resident.replicas, status.replicas, strict=True)
        info["replicas"] = [replica_info(replica, replica_status) for replica, replica_status in told]
    if resident.serving:
        info["limit"] = limit(resident.max_context, abilities)
    info |= _served(resident)
    if status.progress is not None:
        info["progress"] = progress(status.progress)
    if status.last_error is not None:
        info["last_error"] = status.last_error
    if status.stage in (ModelStage.FAILED, ModelStage.RECOVERING):
        info["servable"] = {"ok": False, "reason": "unavailable", "detail": status.last_error}
    elif (short := resident.shortage) is not None:
        detail = f"device {short.device} has {short.free} MiB free, and needs {short.required} MiB"
        info["servable"] = {"ok": False, "reason": "insufficient_vram", "detail": detail}
    if resident.load.dropped:
        info["dropped_programs"] = list(resident.load.dropped)
    if client is not None:
        info["pid"], ready = client.pid, client.ready
        info["quant"] = {"chosen": ready.quant, "reason": ready.quant_reason}
        info["kv_dtype"] = {"chosen": ready.kv_dtype, "reason": ready.kv_reason}
        info["deterministic"] = {"chosen": ready.deterministic, "reason": ready.deterministic_reason}
        info["attention"] = {"chosen": ready.attention, "reason": ready.attention_reason}
        info["threads"] = ready.threads
        info["plan"] = [{"what": row.what, "bytes": row.bytes} for row in ready.plan]
    return info


def _served(resident: ResidentModel) -> Json:
    """Which weights serve, and the adapters beside them."""
    adapters: Json = {"adapters": list(folders_of(resident.spec.adapters))} if resident.spec.adapters else {}
    if resident.spec.transform is not None:
        adapters["transform"] = resident.spec.transform
    return adapters if resident.served is None else {**adapters, "weights": attrs.asdict(resident.served)}


def replica_info(replica: Replica, status: ReplicaStatus) -> Json:
    """One engine of a model."""
    load, client = replica.load, replica.client
    return {
        "status": status.stage,
        "devices": list(replica.devices),
        "pid": None if client is None else client.pid,
        "restarts": status.state.restarts,
        "last_error": status.last_error,
        "load": {
            "open": 0 if client is None else client.open,
            "running": load.running,
            "waiting": load.waiting,
            "free_pages": load.free_pages,
            "pages": load.pages,
            "tok_s_prefill": load.prefill_rate,
            "tok_s_decode": load.decode_rate,
        },
    }


def unloaded_info(files: ModelFiles, offered: Offered) -> Json:
    """ModelInfo of something that could be loaded; limits and sizes only where its files are here."""
    entry, facts = offered.entry, offered.facts
    unread = Abilities(capabilities=CAPABILITIES[entry.purpose])
    info = _info(entry.id, entry.aliases, "unloaded", facts.abilities if isinstance(facts, ModelFacts) else unread)
    if (adapters := files.adapters(entry.id)) and not isinstance(facts, Broken):
        info["adapters"] = list(folders_of(adapters))
    if isinstance(facts, Broken):
        info["servable"] = {"ok": False, "reason": "bad_checkpoint", "detail": facts.reason}
    elif facts is not None:
        info["limit"] = limit(files.context_limit(entry.id, facts.description), facts.abilities)
        info["vram_estimate_mb"] = -(-files.least_bytes(entry.id, facts.description) // MIB)
    return info


def limit(context: int, abilities: Abilities) -> Json:
    """The limits of a model: of one that generates, one token of the context is always the answer's."""
    if "text" not in abilities.capabilities:
        return {"context": context, "input": context, "output": 0}
    return {"context": context, "input": context - 1, "output": context - 1}


def progress(step: Progress) -> Json:
    """How far a load is."""
    return {"phase": step.phase, "done": step.done, "total": step.total, "unit": step.unit}


def _info(model_id: str, aliases: tuple[str, ...], status: str, abilities: Abilities) -> Json:
    return {
        "id": model_id,
        "aliases": list(aliases),
        "harness": "jax",
        "status": status,
        "devices": [],
        "vram_used_mb": None,
        "capabilities": list(abilities.capabilities),
        "tool_call": abilities.tool_call,
        "tool_format": abilities.tool_format,
        "reasoning": abilities.reasoning,
    }


def _planned(resident: ResidentModel, what: str) -> int | None:
    """Bytes over all devices of all engines: a row of their memory plans, which they keep to. None while none serves."""
    found = [
        row.bytes * len(replica.devices)
        for replica in resident.replicas
        if replica.client is not None
        for row in replica.client.ready.plan
        if row.what.startswith(what)
    ]
    return sum(found) if found else None


def _measured(lifecycle: Lifecycle, resident: ResidentModel) -> int | None:
    """MiB that its engines really use, where NVML tells of all of them; a CPU's memory is taken by and by."""
    if lifecycle.devices.platform == "cpu":
        return None
    picture, grants = lifecycle.devices.picture(), lifecycle.devices.grants
    holders = [grants[replica.holder] for replica in resident.replicas if replica.holder in grants]
    used = [measured(given, picture) for given in holders]
    return None if not used or None in used else sum(mb for mb in used if mb is not None)
