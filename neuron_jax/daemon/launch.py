"""What an engine process is told: a load request over the neuron's own limits; pure."""

from pathlib import Path
from typing import Literal

from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.workers.frames import EngineSpec


def engine_spec(
    config: NeuronConfig, spec: ModelSpec, platform: Literal["cpu", "cuda"], devices: tuple[int, ...], path: Path
) -> EngineSpec:
    """The engine's spec for the model at `path` on `devices`; what the request leaves open comes from `config`."""
    engine = config.engine
    return EngineSpec(
        model_id=spec.model_id,
        path=str(path),
        platform=platform,
        devices=devices,
        tensor_parallel=len(devices),
        quant=spec.quant,
        kv_dtype=spec.kv_dtype,
        deterministic=spec.deterministic,
        memory_mb=engine.memory_mb,
        kv_mb=spec.kv_mb or engine.kv_mb,
        max_context=spec.max_context or engine.max_context,
        max_slots=engine.max_slots,
        page_size=engine.page_size,
        prefix_cache=engine.prefix_cache,
        chunk_tokens=engine.chunk_tokens,
        decode_steps=engine.decode_steps,
        speculate=engine.speculate,
        compile_cache=str(config.cache.compile_dir),
    )
