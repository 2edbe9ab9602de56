"""Cards that are not here, as JAX devices to compile for: XLA needs a card's figures and no driver; knows no models.

JAX must be imported with `ENVIRONMENT` set: it would look for a driver, and refuse to load its CUDA plugin without one.
"""

from collections.abc import Mapping
from typing import Any

from jax.experimental import topologies

from neuron_jax.hardware.cards import Card

ENVIRONMENT: Mapping[str, str] = {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}

CUDNN, CUDA = (9, 8), (12, 9)
"""Versions that XLA is told of; without the first it makes no attention of cuDNN's."""

ACCELERATED = ((9, 0), (10, 0))
"""Generations with instructions of their own that later ones do not have (sm_90a, sm_100a), which Mosaic's kernels use."""


def devices(card: Card, count: int) -> list[Any]:
    """`count` of these cards, as jax devices to make a mesh of. They compute nothing.

    Raises jax.errors.JaxRuntimeError where JAX has no CUDA plugin.
    """
    found = topologies.get_topology_desc("cards", platform="cuda", target_config=target(card), topology=f"1x1x{count}")
    return list(found.devices)


def target(card: Card) -> str:
    """XLA's GpuTargetConfigProto of a card, as text (openxla/xla, stream_executor/device_description.proto)."""
    generation, (major, minor) = card.generation, card.capability
    feature = "ACCELERATED_FEATURES" if card.capability in ACCELERATED else "NONE"
    figures = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_block_optin": generation.shared_block,
        "shared_memory_per_core": generation.shared_core,
        "threads_per_core_limit": generation.threads_core,
        "core_count": card.cores,
        "fpus_per_core": generation.units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "memory_bandwidth": int(card.bandwidth),
        "l2_cache_size": card.l2,
        "clock_rate_ghz": card.clock / 1e9,
        "device_memory_size": card.memory,
    }
    told = "\n".join(f"  {name}: {value}" for name, value in figures.items())
    return f"""gpu_device_info {{
{told}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
runtime_version {{ major: {CUDA[0]} minor: {CUDA[1]} }}
device_description_str: "{card.name}"
"""
