"""Rotary frequencies and their scalings for longer contexts; knows numpy, must not know jax or layers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Frequencies = npt.NDArray[np.float32]
_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
}


def misfits(scaling: Mapping[str, Any], head_dim: int) -> list[str]:
    """Why `frequencies` would not do this scaling; empty when it does. `scaling` is config.json's own object."""
    kind = scaling_type(scaling)
    if kind not in _NEEDS:
        return [f"rope scaling {kind!r} is not supported; supported are {', '.join(_NEEDS)}"]
    missing = [key for key in _NEEDS[kind] if key not in scaling]
    if missing:
        return [f"rope scaling {kind!r} needs {', '.join(missing)}"]
    if kind == "factors":
        count = len(scaling["factors"])
        return [] if count == head_dim // 2 else [f"{count} rope factors for {head_dim // 2} frequencies"]
    wrong = [key for key in _NEEDS[kind] if not _positive(scaling[key])]
    if wrong:
        return [f"rope scaling {key} is {scaling[key]!r}, must be a positive number" for key in wrong]
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        return ["rope scaling high_freq_factor must be above low_freq_factor"]
    return []


def scaling_type(scaling: Mapping[str, Any]) -> str:
    """The kind of scaling; older configs call the field `type`."""
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> Frequencies:
    """[H/2] radians per position. `factors` divides each frequency by its own number, as GGUF files store it."""
    base = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    kind = scaling_type(scaling)
    if kind == "linear":
        base = base / scaling["factor"]
    elif kind == "llama3":
        base = _llama3(base, scaling)
    elif kind == "factors":
        base = base / np.asarray(scaling["factors"], np.float64)
    return base.astype(np.float32)


def _llama3(base: npt.NDArray[np.float64], scaling: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Long waves are stretched by `factor`, short ones kept, those between mixed. Llama 3.1, apply_scaling."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * base / (2 * math.pi)
    kept: npt.NDArray[np.float64] = np.clip((turns - low) / (high - low), 0.0, 1.0)
    stretched: npt.NDArray[np.float64] = base * (kept + (1 - kept) / scaling["factor"])
    return stretched


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
