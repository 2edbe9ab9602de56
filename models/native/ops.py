"""The kernels as functions of traced arrays, float32 throughout; knows their arguments, must not know layers or pages.

Only for programs of one CPU device, and only where `library.unavailable()` is None.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen

from models.native.tiles import Tiles

_EPILOGUES = {"none": 0, "add": 1, "gated": 2}


@frozen
class Norm:
    """Root mean square normalization, computed with the product that follows: weight [K]."""

    weight: jax.Array
    epsilon: float


def linear(
    x: jax.Array,
    tiles: Tiles,
    matrix: jax.Array,
    *,
    norm: Norm | None = None,
    residual: jax.Array | None = None,
    live: jax.Array | None = None,
) -> jax.Array:
    """x [T, K], matrix as `tiles` packs it -> [T, N]: norm(x) W^T, plus `residual` [T, N] if given; of gated tiles
    silu(gate) * up. Here and below, with `live` int32 [1] only the first so many of the T rows are computed.

    A row's result is the same bits whatever T is. https://arxiv.org/abs/2002.05202 for gated units.
    """
    assert not (tiles.gated and residual is not None), "a gated product has no residual"
    epilogue = "gated" if tiles.gated else "none" if residual is None else "add"
    call = jax.ffi.ffi_call("cortex_linear", jax.ShapeDtypeStruct((x.shape[0], tiles.outputs), jnp.float32))
    return _one(
        call(
            x,
            matrix,
            _count(live, x),
            *([] if norm is None else [norm.weight]),
            *([] if residual is None else [residual]),
            **_attributes(tiles),
            norm=norm is not None,
            epilogue=_EPILOGUES[epilogue],
            epsilon=np.float32(0 if norm is None else norm.epsilon),
        )
    )


def rows(tokens: jax.Array, tiles: Tiles, matrix: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """tokens [T] int32, each below the number of rows -> those rows of the matrix, [T, K]."""
    call = jax.ffi.ffi_call("cortex_rows", jax.ShapeDtypeStruct((tokens.shape[0], tiles.columns), jnp.float32))
    return _one(call(tokens, matrix, _count(live, tokens), **_attributes(tiles), tiles=np.int64(tiles.count)))


def normalize(x: jax.Array, norm: Norm, live: jax.Array | None = None) -> jax.Array:
    """x [T, K] -> [T, K]."""
    call = jax.ffi.ffi_call("cortex_norm", jax.ShapeDtypeStruct(x.shape, jnp.float32))
    return _one(call(x, norm.weight, _count(live, x), epsilon=np.float32(norm.epsilon)))


def attention(
    qkv: jax.Array,
    rotary: tuple[jax.Array, jax.Array],
    pool: tuple[jax.Array, jax.Array],
    *,
    table: jax.Array,
    slot: jax.Array,
    start: jax.Array,
    count: jax.Array,
    scale: float,
    window: int | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """qkv [T, K, G+2, H], rotary cos and sin [T, H/2], keys [P, K, H, S], values [P, K, S, H], pages by slot in table
    [slots, W] int32 -> mixed [T, K, G, H], and the pool with the new keys and values, written in place.

    Row r is the next count[r] of the T tokens, in slot[r] from position start[r] on, all [R] int32. What is behind the last
    row's is left as it was. A token's result is the same bits in whatever rows it and those before it come.
    """
    tokens, kv_heads, members, width = qkv.shape
    keys, values = pool
    mixed = jax.ShapeDtypeStruct((tokens, kv_heads, members - 2, width), jnp.float32)
    pages = [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in pool]
    call = jax.ffi.ffi_call("cortex_attention", [mixed, *pages], input_output_aliases={7: 1, 8: 2})
    out: Any = call(
        qkv, *rotary, table, slot, start, count, keys, values, window=np.int64(window or 0), scale=np.float32(scale)
    )
    return out[0], (out[1], out[2])


def sample(
    logits: jax.Array, ints: jax.Array, floats: jax.Array, past: tuple[jax.Array, ...], *, alternatives: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """logits float32 [R, V], ints int32 [R, 8] and floats float32 [R, 6] with the columns that src/sampler.h numbers, past
    int16 and bool [S, V], int32, float32 and uint32 [S, B] -> token int32 [R], its log-probability float32 [R], ids int32
    and log-probabilities float32 [R, alternatives] of the likeliest.
    """
    rows = logits.shape[0]
    line, table = (rows,), (rows, alternatives)
    dtypes = ((line, jnp.int32), (line, jnp.float32), (table, jnp.int32), (table, jnp.float32))
    call = jax.ffi.ffi_call("cortex_sample", [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in dtypes])
    out: Any = call(logits, ints, floats, *past)
    return out[0], out[1], out[2], out[3]


def _count(live: jax.Array | None, rows: jax.Array) -> jax.Array:
    return jnp.full((1,), rows.shape[0], jnp.int32) if live is None else live


def _attributes(tiles: Tiles) -> dict[str, Any]:
    storage = tiles.storage
    group = storage.group if storage.coded else 0
    half, offset = storage.coded and storage.half, storage.coded and storage.offset
    return {"codes": np.int64(tiles.code), "group": np.int64(group), "half": half, "offset": offset}


def _one(result: Any) -> jax.Array:
    found: jax.Array = result
    return found
