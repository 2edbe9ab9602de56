"""What stands between the projection of a step's tokens and attention: norms of heads, rotation, scale, and storing.

Knows arrays, no rows and no requests. `turned` and `KVFormat.write` are how XLA does it, in five kernels of a GPU; `store` is
the same in one. A program takes the query heads of one kv head of one token, and its key and value. It lowers through Triton,
as `flash`; run in Pallas' interpreter only, and compiled for cards that were not there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.turned import Heads, Rotary

VALUES = 512
"""Of each half of its heads that a warp takes."""


def refuses(layer: PagedLayer, kv: KVFormat, values: int) -> str | None:
    """Why it does not serve `layer` with a pool of so many `values` on a device; None where it does."""
    if layer.k_width != layer.v_width or layer.k_width % 2:
        return "stores keys and values of one even width"
    if kv.quantized:
        return f"rounds nothing to {kv.name}"
    return "a layer's pool is too large for 32-bit offsets" if values >= 2**31 else None


def store(
    qkv: jax.Array,
    rotary: Rotary,
    cache: LayerCache,
    heads: Heads,
    *,
    page: jax.Array,
    offset: jax.Array,
    real: jax.Array,
    interpret: bool = False,
) -> tuple[jax.Array, LayerCache]:
    """qkv [T, K, G + 2, H] as projected -> q [T, K, G, H] as attention takes it, and the pool with k and v at `page` [T] and
    `offset` [T]. As `turned` and `KVFormat.write`: of tokens that are not `real` [T] zeros are stored.
    """
    tokens, kv_heads, every, width = qkv.shape
    told = (page, offset, real.astype(jnp.int32))
    turns: Sequence[jax.Array] = () if rotary is None else rotary
    weights: Sequence[jax.Array] = () if heads.norms is None else [norm.weight for norm in heads.norms]
    given = (qkv, *told, *turns, *weights)

    def kernel(*refs: Any) -> None:
        qkv_ref, *others = refs[: len(given)]
        extra = others[len(told) :]
        named = {"told": others[: len(told)], "turns": extra[: len(turns)], "weights": extra[len(turns) :]}
        _store(qkv_ref, named, heads, refs[-3:])

    shapes = [jax.ShapeDtypeStruct((tokens, kv_heads, every - 2, width), qkv.dtype)]
    shapes += [jax.ShapeDtypeStruct(pool.shape, pool.dtype) for pool in cache]
    warps = max(pl.next_power_of_2(every) * pl.next_power_of_2(width // 2) // VALUES, 1)
    call: Any = pl.pallas_call(
        kernel,
        grid=(tokens, kv_heads),
        in_specs=[_whole(array.shape) for array in (*given, *cache)],
        out_specs=[_whole(shape.shape) for shape in shapes],
        out_shape=shapes,
        input_output_aliases={len(given): 1, len(given) + 1: 2},
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name="turn_and_store",
    )
    q, *pools = call(*given, *cache)
    return q, tuple(pools)


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def _store(qkv: Any, named: Mapping[str, Sequence[Any]], heads: Heads, made: Sequence[Any]) -> None:
    """One kv head of one token. Heads are rows, the last but one of which is the key and the last the value."""
    token, kv_head = pl.program_id(0), pl.program_id(1)
    every, width = qkv.shape[2:]
    group, half = every - 2, width // 2
    row = jnp.arange(pl.next_power_of_2(every), dtype=jnp.int32)[:, None]
    lane = jnp.arange(pl.next_power_of_2(half), dtype=jnp.int32)[None]
    inside = lane < half
    there = (row < every) & inside
    halves = [lane, lane + half]
    parts = [triton.load(qkv.at[token, kv_head, row, at], mask=there, other=0).astype(jnp.float32) for at in halves]
    if heads.norms is not None:
        squares = sum((part * part).sum(axis=1, keepdims=True) for part in parts)
        epsilon = jnp.where(row < group, heads.norms[0].epsilon, heads.norms[1].epsilon)
        scale = lax.rsqrt(squares / width + epsilon)
        for i, at in enumerate(halves):
            q_weight, k_weight = (triton.load(ref.at[at], mask=inside, other=0) for ref in named["weights"])
            normed = parts[i] * scale * jnp.where(row < group, q_weight, k_weight)
            parts[i] = jnp.where(row <= group, normed, parts[i])
    if named["turns"]:
        cos, sin = (triton.load(ref.at[token, lane], mask=inside, other=0) for ref in named["turns"])
        first, second = parts
        by = (first * cos - second * sin, second * cos + first * sin)
        parts = [jnp.where(row <= group, new, old) for new, old in zip(by, parts, strict=True)]
    q_ref, *pools = made
    page, offset, real = (triton.load(ref.at[token]) for ref in named["told"])
    for at, part in zip(halves, parts, strict=True):
        triton.store(
            q_ref.at[token, kv_head, row, at], (part * heads.scale).astype(q_ref.dtype), mask=(row < group) & inside
        )
        # Rounded as the projection is before it is stored, whatever the pool's dtype.
        kept = jnp.where(real > 0, part, 0.0).astype(q_ref.dtype).astype(jnp.float32)
        for i, pool in enumerate(pools):
            own = jnp.where(row == group + i, kept, jnp.zeros((), kept.dtype)).sum(axis=0).astype(pool.dtype)
            triton.store(pool.at[page, offset, kv_head, at[0]], own, mask=inside[0])
