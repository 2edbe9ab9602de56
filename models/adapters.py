"""Low-rank adapters beside linear maps, many at once, each token with one or none; knows arrays and rules, must not know files.

y = W x + B A x (LoRA, https://arxiv.org/abs/2106.09685). All adapters of a map stand side by side in one A and one B. A token's
own part of what A gives is kept, and the rest is zeros: two small products for all tokens, whoever they are of, and none that
depends on who is there.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen
from jax import lax

from models.errors import ModelError
from models.mapping import Part, Rule
from models.spec import Model
from models.storage import Array

ADAPTED = re.compile(
    r"layers\.\d+\."
    r"(attention\.(qkv|q|q_a|kv_a|gate|out)|delta\.(qkv|z|gates|out)|mamba\.(cbx|z|steps|out)|convolution\.(inputs|out)"
    r"|mlp\.(shared\.)?(gate_up|down))"
)
"""Paths of maps that can have adapters: not those that choose experts, theirs, or what is applied to each head's latent."""
_WITHOUT = (
    (re.compile(r".*\bexperts\b.*"), "experts lie in a stack, beside which none stands; merge it into the weights"),
    (re.compile(r".*\.router(_norm)?"), "what chooses experts has none; merge it into the weights"),
    (
        re.compile(r".*\.attention\.[kv]_up"),
        "what makes keys and values of a latent has none; merge it into the weights",
    ),
)
"""Of others what is told of them: by path, or by a tensor's name, which for experts may be PEFT's own."""

Pairs = Mapping[str, tuple[Array, Array]]
"""By name of the checkpoint's tensor that they stand beside: A [r, in], and B [out, r] times what it is scaled with."""


@frozen(eq=False)
class Adapters:
    """All adapters of a model. `arrays` by path of the map: "down" [in, S] and "up" [S, out], ranks of all adapters side by
    side. `owners` int32 [S] by path: whose each of these is. Adapters count from 1; 0 is none.
    """

    arrays: Mapping[str, Mapping[str, Array]]
    owners: Mapping[str, Array]
    count: int

    @property
    def digest(self) -> str:
        """The same for the same adapters, in a few characters."""
        found = hashlib.sha256()
        for path, pair in sorted(self.arrays.items()):
            found.update(path.encode() + self.owners[path].tobytes() + pair["down"].tobytes() + pair["up"].tobytes())
        return found.hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for pair in self.arrays.values() for array in pair.values())


@frozen(eq=False)
class Chosen:
    """A model's parameters with the adapters that each token goes through: `which` int32 [T]."""

    params: Any
    arrays: Mapping[str, Mapping[str, jax.Array]]
    owners: Mapping[str, Array]
    which: jax.Array

    def attach(self, network: Any) -> None:
        """Put each map's adapters beside it, in a network that was made for one trace."""
        for path, pair in self.arrays.items():
            target = network
            for key in path.split("."):
                target = target[int(key)] if key.isdigit() else getattr(target, key)
            keep = self.which[:, None] == jnp.asarray(self.owners[path])[None]
            # Around the module's own rules for attributes: this is not one of its parameters.
            object.__setattr__(target, "low_rank", LowRank(pair["down"], pair["up"], keep))


@frozen(eq=False)
class LowRank:
    """The adapters of one map, and of each token and rank whether it is the token's, `keep` [T, S]."""

    down: jax.Array
    up: jax.Array
    keep: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, in], normed if the map norms it -> [T, out] in its dtype; zeros for tokens without an adapter."""
        inner = jnp.where(self.keep, _product(x, self.down), 0)
        return _product(inner.astype(x.dtype), self.up).astype(x.dtype)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def gather(model: Model, adapters: Sequence[Pairs], dtype: Any) -> Adapters:
    """All `adapters` of a model, numbered from 1 in this order; every device has them whole. Raises ModelError with every
    misfit."""
    uses = _uses(model)
    made: dict[str, list[tuple[int, Array, Array]]] = {}
    misfits: list[str] = []
    for number, pairs in enumerate(adapters, start=1):
        for name, (down, up) in pairs.items():
            where = uses.get(name, [])
            if not where or not all(_can_have(rule, part) for rule, part in where):
                misfits.append(_told(name, where))
            elif (wrong := _wrong(where[0][1], down, up)) is not None:
                misfits.append(f"{name} {wrong}")
            else:
                for rule, part in where:
                    made.setdefault(rule.path, []).append((number, *_placed(rule, part, down, up)))
    if misfits:
        raise ModelError("adapters", sorted(set(misfits)))
    return Adapters(
        arrays={path: _side_by_side(parts, dtype) for path, parts in made.items()},
        owners={path: _owners(parts) for path, parts in made.items()},
        count=len(adapters),
    )


def _told(name: str, where: Sequence[tuple[Rule, Part]]) -> str:
    """Why the map of a tensor has no adapter."""
    paths = [rule.path for rule, _ in where] or [name]
    why = next((f": {words}" for pattern, words in _WITHOUT if any(map(pattern.fullmatch, paths))), "")
    return f"{name} is no map that can have an adapter{why}"


def _uses(model: Model) -> dict[str, list[tuple[Rule, Part]]]:
    """What is made of each tensor of a checkpoint, in whichever way it is laid out: queries and their gate of one, say."""
    found: dict[str, list[tuple[Rule, Part]]] = {}
    for rule in model.rules:
        for parts in (rule.parts, *rule.others) if isinstance(rule, Rule) else ():
            for part in parts:
                found.setdefault(part.name, []).append((rule, part))
    return found


def _can_have(rule: Rule, part: Part) -> bool:
    """Whether it is the matrix of a map that can have adapters, whose rows or columns stand where those of theirs can."""
    matrix = len(rule.shape) > rule.inputs and part.name.endswith(".weight")
    return ADAPTED.fullmatch(rule.path) is not None and matrix and (rule.inputs > 1 or not part.moves_columns)


def _wrong(part: Part, down: Array, up: Array) -> str | None:
    outputs, inputs = part.shape[0], prod(part.shape[1:])
    fits = down.shape[1:] == (inputs,) and up.shape[:1] == (outputs,) and down.shape[0] == up.shape[1]
    return None if fits else f"is [{outputs}, {inputs}], and its adapter is of {list(down.shape)} and {list(up.shape)}"


def _placed(rule: Rule, part: Part, down: Array, up: Array) -> tuple[Array, Array]:
    """A with its columns, [in, r], and B with its rows, [r, out], where those of the checkpoint's tensor are."""
    rank = down.shape[0]
    if rule.inputs > 1:
        moved = part.arrange(down) if part.moves_columns else down
        return np.ascontiguousarray(moved.reshape(rank, -1).T), up.T
    outputs = rule.shape[: len(rule.shape) - rule.inputs]
    whole = np.zeros((*outputs, rank), np.float32)
    place = whole[part.index]
    whole[part.index] = part.arrange(up.astype(np.float32)).reshape(place.shape)
    return down.T, np.ascontiguousarray(whole.reshape(-1, rank).T)


def _side_by_side(parts: Sequence[tuple[int, Array, Array]], dtype: Any) -> dict[str, Array]:
    return {
        "down": np.concatenate([down for _, down, _ in parts], axis=1).astype(dtype),
        "up": np.concatenate([up for _, _, up in parts], axis=0).astype(dtype),
    }


def _owners(parts: Sequence[tuple[int, Array, Array]]) -> Array:
    return np.concatenate([np.full(down.shape[1], number, np.int32) for number, down, _ in parts])
