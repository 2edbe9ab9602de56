"""Rotary frequencies, their scalings for longer contexts, and what a config says of them; knows numpy, no jax, no layers."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from models.config import Keys, is_positive

MOST_WIDTH = 4096
"""Of a head; no model's is a tenth of it."""
Frequencies = npt.NDArray[np.float32]
_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
}


@frozen
class Rotary:
    """How the heads of a layer turn: radians per position of the pairs (i, i + H/2), [H/2]. Of a head that turns in part,
    `rotated` < H are the dimensions that do; the pairs of the others come last and have frequency 0.
    """

    frequencies: tuple[float, ...]
    rotated: int

    @property
    def order(self) -> tuple[int, ...] | None:
        """Where each dimension of a head stands in a checkpoint, whose rotated dimensions come first; None: where it is.

        Heads are laid out so once, when they are loaded, and every kernel turns whole heads: a product of two vectors does
        not depend on the order of their dimensions.
        """
        half, width = self.rotated // 2, 2 * len(self.frequencies)
        if self.rotated == width:
            return None
        still = (width - self.rotated) // 2
        first, second = range(half), range(half, self.rotated)
        return (*first, *range(self.rotated, self.rotated + still), *second, *range(self.rotated + still, width))


_STILL = Rotary((0.0,), 2)


def read_rotary(
    keys: Keys,
    head_dim: int,
    *,
    kind: str | None = None,
    theta: float = 10000.0,
    share: float = 1.0,
    whole: bool = False,
) -> Rotary:
    """What a config says in rope_parameters, or in rope_theta, rope_scaling and partial_rotary_factor as it used to be.

    `kind` is the type of layer, where rope_parameters has an object for each; `theta` and `share` are the family's own. With
    `whole` a head that turns in part is refused.
    """
    nested = _of_kind(keys, kind)
    scaling = nested or keys.section("rope_scaling")
    said = Keys({**_old(keys), **{key: value for key, value in nested.items() if value is not None}}, keys.subject)
    theta, share = said.number("rope_theta", theta), said.number("partial_rotary_factor", share)
    keys.misfits += said.misfits
    rotated = int(head_dim * share)
    if head_dim % 2 or head_dim > MOST_WIDTH:
        keys.refuse(f"head_dim is {head_dim}, must be even for rotary embedding, and at most {MOST_WIDTH}")
    elif share > 1 or rotated < 2 or rotated % 2:
        keys.refuse(f"partial_rotary_factor is {share}, must leave an even part of a head_dim of {head_dim}")
    if whole and rotated != head_dim:
        keys.refuse("partial_rotary_factor must be 1.0")
    keys.refuse(misfits(scaling, rotated))
    turning = [] if keys.misfits else _finite(keys, rotated, theta, scaling)
    return Rotary((*turning, *[0.0] * (head_dim // 2 - len(turning))), rotated) if turning else _STILL


def _finite(keys: Keys, rotated: int, theta: float, scaling: Mapping[str, Any]) -> list[float]:
    with np.errstate(all="ignore"):
        turning = frequencies(rotated, theta, scaling)
    if not np.isfinite(turning).all():
        keys.refuse(f"rope_theta {theta} with rope scaling {dict(scaling)} gives frequencies that are no numbers")
        return []
    found: list[float] = turning.tolist()
    return found


def _old(keys: Keys) -> dict[str, Any]:
    return {key: keys.get(key) for key in ("rope_theta", "partial_rotary_factor")}


def _of_kind(keys: Keys, kind: str | None) -> Mapping[str, Any]:
    """rope_parameters, or where it has an object for each type of layer, that of `kind`."""
    nested = keys.section("rope_parameters")
    if not any(isinstance(value, Mapping) for value in nested.values()) and kind not in nested:
        return nested
    found = None if kind is None else nested.get(kind)
    if isinstance(found, Mapping):
        return found
    keys.misfits.append(f"rope_parameters has {found!r} for {kind or 'all layers'}, must be an object")
    return {}


def misfits(scaling: Mapping[str, Any], head_dim: int) -> list[str]:
    """Why `frequencies` would not do this scaling; empty when it does. `scaling` is config.json's own object."""
    kind = scaling_type(scaling)
    if kind not in _NEEDS:
        return [f"rope scaling {kind!r} is not supported; supported are {', '.join(_NEEDS)}"]
    missing = [key for key in _NEEDS[kind] if key not in scaling]
    if missing:
        return [f"rope scaling {kind!r} needs {', '.join(missing)}"]
    if kind == "factors":
        return _misfits_of_factors(scaling["factors"], head_dim // 2)
    wrong = [key for key in _NEEDS[kind] if not is_positive(scaling[key])]
    if wrong:
        return [f"rope scaling {key} is {scaling[key]!r}, must be a positive number" for key in wrong]
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        return ["rope scaling high_freq_factor must be above low_freq_factor"]
    return []


def _misfits_of_factors(factors: Any, wanted: int) -> list[str]:
    if not isinstance(factors, list | tuple) or not all(is_positive(factor) for factor in factors):
        return ["rope scaling factors must be positive numbers"]
    return [] if len(factors) == wanted else [f"{len(factors)} rope factors for {wanted} frequencies"]


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
