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
LONG, PROPORTIONAL, DYNAMIC = "longrope", "proportional", "dynamic"
_LISTS = {"factors": "factors", LONG: "short_factor"}
"""Where a kind has a divisor for each frequency."""
_NEEDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "factors": ("factors",),
    "yarn": ("factor", "original_max_position_embeddings"),
    PROPORTIONAL: (),
    DYNAMIC: ("alpha",),
    LONG: ("short_factor", "factor", "original_max_position_embeddings"),
}
_MAY: dict[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    LONG: ("attention_factor",),
    PROPORTIONAL: ("factor",),
}


@frozen
class Rotary:
    """How the heads of a layer turn: radians per position of the pairs (i, i + H/2), [H/2]. Of a head that turns in part,
    `rotated` < H are the dimensions that do; the pairs of the others come last and have frequency 0. What turns is
    multiplied by `magnitude`. In an `interleaved` checkpoint the pairs are (2 i, 2 i + 1).
    """

    frequencies: tuple[float, ...]
    rotated: int
    magnitude: float = 1.0
    interleaved: bool = False

    @property
    def magnitudes(self) -> Frequencies:
        """[H/2], of each pair."""
        return np.where(np.array(self.frequencies, np.float32) > 0, np.float32(self.magnitude), np.float32(1))

    @property
    def order(self) -> tuple[int, ...] | None:
        """Where each dimension of a head stands in a checkpoint, whose rotated dimensions come first; None: where it is.

        Heads are laid out so once, when they are loaded, and every kernel turns whole heads: a product of two vectors does
        not depend on the order of their dimensions.
        """
        half, width = self.rotated // 2, 2 * len(self.frequencies)
        if self.rotated == width and not self.interleaved:
            return None
        still = (width - self.rotated) // 2
        first, second = range(half), range(half, self.rotated)
        if self.interleaved:
            first, second = range(0, self.rotated, 2), range(1, self.rotated, 2)
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
    interleaved: bool = False,
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
    if scaling_type(scaling) == PROPORTIONAL and 2 / max(head_dim, 2) <= share <= 1:
        share = 1.0  # `frequencies` knows which of the pairs turn
    rotated = int(head_dim * share)
    if head_dim % 2 or head_dim > MOST_WIDTH:
        keys.refuse(f"head_dim is {head_dim}, must be even for rotary embedding, and at most {MOST_WIDTH}")
    elif share > 1 or rotated < 2 or rotated % 2:
        keys.refuse(f"partial_rotary_factor is {share}, must leave an even part of a head_dim of {head_dim}")
    if whole and rotated != head_dim:
        keys.refuse("partial_rotary_factor must be 1.0")
    keys.refuse(misfits(scaling, rotated))
    turning, size = ((), 1.0) if keys.misfits else _finite(keys, rotated, theta, scaling)
    if not turning:
        return _STILL
    still = (0.0,) * (head_dim // 2 - len(turning))
    return Rotary((*turning, *still), rotated, size, interleaved)


def _finite(keys: Keys, rotated: int, theta: float, scaling: Mapping[str, Any]) -> tuple[tuple[float, ...], float]:
    """The frequencies of what turns and its magnitude; none where they are no numbers, which `keys` then tells."""
    try:
        with np.errstate(all="raise", under="ignore"):
            size = magnitude(scaling)
            if not size <= np.finfo(np.float32).max:
                raise OverflowError
            return tuple(frequencies(rotated, theta, scaling).tolist()), size
    except (ArithmeticError, ValueError):  # a logarithm of nothing, a division by that of one
        keys.refuse(f"rope_theta {theta} with rope scaling {dict(scaling)} gives frequencies that are no numbers")
        return (), 1.0


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
        why = "is not supported without an alpha" if kind == DYNAMIC else f"needs {', '.join(missing)}"
        return [f"rope scaling {kind!r} {why}"]
    list_key = _LISTS.get(kind)
    if list_key and (found := _misfits_of_factors(scaling[list_key], head_dim // 2)):
        return found
    said = [key for key in _MAY.get(kind, ()) if scaling.get(key) is not None]
    wrong = [key for key in (*_NEEDS[kind], *said) if key != list_key and not is_positive(scaling[key])]
    if wrong:
        return [f"rope scaling {key} is {scaling[key]!r}, must be a positive number" for key in wrong]
    if kind == "llama3" and scaling["high_freq_factor"] < scaling["low_freq_factor"]:
        return ["rope scaling high_freq_factor must be at least low_freq_factor"]
    return []


def _misfits_of_factors(factors: Any, wanted: int) -> list[str]:
    if not isinstance(factors, list | tuple) or not all(is_positive(factor) for factor in factors):
        return ["rope scaling factors must be positive numbers"]
    return [] if len(factors) == wanted else [f"{len(factors)} rope factors for {wanted} frequencies"]


def scaling_type(scaling: Mapping[str, Any]) -> str:
    """The kind of scaling; older configs call the field `type`."""
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any]) -> Frequencies:
    """[H/2] radians per position. `factors` divides each frequency by its own number, as GGUF files store it. "dynamic" is
    served with an `alpha`, as Hunyuan's checkpoints say it: then it depends on no length, and stretches theta once for all.
    """
    kind = scaling_type(scaling)
    if kind == DYNAMIC:
        theta *= scaling["alpha"] ** (head_dim / (head_dim - 2))
    base = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if kind == "linear":
        base = base / scaling["factor"]
    elif kind == "llama3":
        base = _llama3(base, scaling)
    elif kind == "yarn":
        base = _yarn(base, theta, scaling)
    elif kind == PROPORTIONAL:
        turning = int((scaling.get("partial_rotary_factor") or 1.0) * head_dim // 2)
        base = np.where(np.arange(len(base)) < turning, base, 0.0) / (scaling.get("factor") or 1.0)
    elif kind in _LISTS:
        base = base / np.asarray(scaling[_LISTS[kind]], np.float64)
    return base.astype(np.float32)


def _llama3(base: npt.NDArray[np.float64], scaling: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Long waves are stretched by `factor`, short ones kept, those between mixed. Llama 3.1, apply_scaling. In Llama 4 none are
    between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * base / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else (turns >= low).astype(np.float64)
    stretched: npt.NDArray[np.float64] = base * (kept + (1 - kept) / scaling["factor"])
    return stretched


def _yarn(base: npt.NDArray[np.float64], theta: float, scaling: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """Pairs that turn more than beta_fast times within the original context are kept, those below beta_slow times divided by
    `factor`, those between mixed by their place. https://arxiv.org/abs/2309.00071, as transformers does it.
    """
    width, original = 2 * len(base), scaling["original_max_position_embeddings"]

    def place(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(scaling.get("beta_fast") or 32), place(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    mixed = np.clip((np.arange(len(base)) - low) / ((high - low) or 0.001), 0.0, 1.0)
    found: npt.NDArray[np.float64] = base * (1 - mixed) + base / scaling["factor"] * mixed
    return found


def magnitude(scaling: Mapping[str, Any]) -> float:
    """What cosines and sines are multiplied by: 1, but for what sharpens attention over long contexts."""
    kind, said = scaling_type(scaling), scaling.get("attention_factor")
    if kind not in _MAY or kind == PROPORTIONAL:
        return 1.0
    if said is not None:
        return float(said)
    if kind == LONG:
        factor = max(scaling["factor"], 1.0)
        return math.sqrt(1 + math.log(factor) / math.log(scaling["original_max_position_embeddings"]))
    factor, over, under = scaling["factor"], scaling.get("mscale"), scaling.get("mscale_all_dim")
    return _sharper(factor, over) / _sharper(factor, under) if over and under else _sharper(factor, 1.0)


def latent_sharpening(scaling: Mapping[str, Any]) -> float:
    """What the scores of latent attention are multiplied by where its rotary embedding is scaled: a square, for what sharpens
    both queries and keys, also in the dimensions that do not turn. As transformers does it for DeepSeek V2 and V3.
    """
    by = scaling.get("mscale_all_dim")
    return _sharper(scaling["factor"], by) ** 2 if by and scaling_type(scaling) != "default" else 1.0


def _sharper(factor: float, by: float) -> float:
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0
