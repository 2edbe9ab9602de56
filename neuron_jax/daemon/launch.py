"""What an engine process is told: a load request over the neuron's own limits; pure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.adapters import folders_of
from neuron_jax.workers.frames import EngineSpec, MemoryRow

TOTAL_ROW, KV_ROW, WEIGHTS_ROW = "total", "KV", "weights"
"""How the rows of a plan begin that the daemon reads."""

LESS = 0.8
"""Of its pages or its memory an engine gets so much after each time it ran out."""


def engine_spec(
    config: NeuronConfig,
    spec: ModelSpec,
    platform: Literal["cpu", "cuda"],
    devices: tuple[int, ...],
    path: Path,
    *,
    memory_mb: int = 0,
) -> EngineSpec:
    """The engine's spec for the model at `path` on `devices`; what the request leaves open comes from `config`.

    `memory_mb`: what it was granted on each device, MiB; 0 where nobody grants anything.
    """
    engine = config.engine
    return EngineSpec(
        model_id=spec.model_id,
        path=str(path),
        platform=platform,
        devices=devices,
        tensor_parallel=max(spec.tensor_parallel, len(devices)),
        expert_parallel=spec.expert_parallel,
        quant=spec.quant,
        kv_dtype=spec.kv_dtype,
        attention=engine.attention,
        deterministic=spec.deterministic,
        memory_mb=memory_mb or spec.memory_mb or engine.memory_mb,
        kv_mb=spec.kv_mb or engine.kv_mb,
        max_context=spec.max_context or engine.max_context,
        max_slots=engine.max_slots,
        page_size=engine.page_size,
        prefix_cache=engine.prefix_cache,
        threads=engine.threads,
        chunk_tokens=engine.chunk_tokens,
        decode_steps=engine.decode_steps,
        speculate=engine.speculate if spec.speculate is None else spec.speculate,
        adapters=tuple(map(str, folders_of(spec.adapters).values())),
        transform=spec.transform or "",
        compile_cache=str(config.cache.compile_dir),
        step_seconds=config.watchdog.step_secs,
        first_seconds=config.watchdog.first_step_secs,
        silent_seconds=config.watchdog.silent_secs,
    )


def shrunk(spec: EngineSpec, pool_mb: int, times: int) -> tuple[EngineSpec, str]:
    """`spec` for an engine whose predecessors ran out of memory so many `times`, and what was done in words.

    `pool_mb`: the KV pool that the first of them planned, over all devices; 0 where it got no further than loading, and then
    it is the whole that shrinks.
    """
    if not times:
        return spec, ""
    part = LESS**times
    if pool_mb:
        kv_mb = max(1, int(pool_mb * part))
        return msgspec.structs.replace(spec, kv_mb=kv_mb), f"it was started again with kv_mb = {kv_mb} of {pool_mb}"
    memory_mb = max(1, int(spec.memory_mb * part))
    less = msgspec.structs.replace(spec, memory_mb=memory_mb, kv_mb=int(spec.kv_mb * part))
    return less, f"it was started again with memory_mb = {memory_mb} of {spec.memory_mb}"


def row_mb(plan: Sequence[MemoryRow], what: str) -> int:
    """MiB on each device of the rows that begin with `what`, rounded up; 0 without one."""
    return -(-sum(row.bytes for row in plan if row.what.startswith(what)) // (1 << 20))
