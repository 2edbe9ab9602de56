"""The kernels as functions of traced arrays, float32 throughout; knows their arguments, must not know layers or pages.

Only for programs of one CPU device, and only where `library.unavailable()` is None.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen

from models.native.tiles import Tiles

GATES = {"silu": 1, "gelu": 2, "gelu_tanh": 3, "swiglu_oai": 4, "relu2": 5}
"""By kind, as src/matmul.h numbers them."""
ALONE = ("relu2",)
"""Those of a product that nothing gates."""


@frozen
class Gate:
    """act(gate) * up, see `models.dense.record.Activation`: with a `limit` gate is at most that, and up within it."""

    kind: str = "silu"
    limit: float | None = None

    def number(self, tiles: Tiles) -> np.int64:
        """As the kernels number it, 0 for a product of these tiles that is left as it is."""
        return np.int64(GATES[self.kind] if tiles.gated != (self.kind in ALONE) else 0)

    @property
    def most(self) -> np.float32:
        """The limit, infinity where there is none."""
        return np.float32(math.inf if self.limit is None else self.limit)


@frozen
class Norm:
    """Root mean square normalization, computed with what follows or goes before: weight [K]."""

    weight: jax.Array
    epsilon: float


def linear(
    x: jax.Array,
    tiles: Tiles,
    matrix: jax.Array,
    *,
    norm: Norm | None = None,
    bias: jax.Array | None = None,
    gate: Gate = Gate(),
    post_norm: Norm | None = None,
    residual: jax.Array | None = None,
    beside: jax.Array | None = None,
    live: jax.Array | None = None,
) -> jax.Array:
    """x [T, K], matrix as `tiles` packs it -> [T, N]: norm(x) W^T + `bias` [N] + `beside` [T, N]; of gated tiles what `gate`
    makes of the halves, with a bias [2, N] and [T, 2 N] beside. Then come `post_norm` [N] and `residual` [T, N]. Here and
    below, with `live` int32 [1] only the first so many of the T rows are computed. Of a stack of matrices, one for each
    head, x is [T, heads * K] and y [T, heads * N]: each head's part of a row times its own matrix, with nothing before or
    behind.

    A row's result is the same bits whatever T is.
    """
    norms = [None if one is None else one.weight for one in (norm, post_norm)]
    given = [norms[0], bias, norms[1], residual, beside]
    call = jax.ffi.ffi_call(
        "cortex_linear", jax.ShapeDtypeStruct((x.shape[0], tiles.stack * tiles.outputs), jnp.float32)
    )
    return first_of(
        call(
            x,
            matrix,
            count_of(live, x),
            *(part for part in given if part is not None),
            **attributes(tiles),
            **{name: part is not None for name, part in zip(_GIVEN, given, strict=True)},
            gate=gate.number(tiles),
            limit=gate.most,
            epsilon=np.float32(0 if norm is None else norm.epsilon),
            post_epsilon=np.float32(0 if post_norm is None else post_norm.epsilon),
            heads=np.int64(tiles.stack),
        )
    )


_GIVEN = ("norm", "bias", "post_norm", "residual", "beside")


def rows(tokens: jax.Array, tiles: Tiles, matrix: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """tokens [T] int32, each below the number of rows -> those rows of the matrix, [T, K]."""
    call = jax.ffi.ffi_call("cortex_rows", jax.ShapeDtypeStruct((tokens.shape[0], tiles.columns), jnp.float32))
    return first_of(call(tokens, matrix, count_of(live, tokens), **attributes(tiles), tiles=np.int64(tiles.count)))


def normalize(x: jax.Array, norm: Norm, live: jax.Array | None = None) -> jax.Array:
    """x [T, K] -> [T, K]."""
    call = jax.ffi.ffi_call("cortex_norm", jax.ShapeDtypeStruct(x.shape, jnp.float32))
    return first_of(call(x, norm.weight, count_of(live, x), epsilon=np.float32(norm.epsilon)))


def centre(x: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """x [T, K] -> [T, K], each row less its mean."""
    call = jax.ffi.ffi_call("cortex_centre", jax.ShapeDtypeStruct(x.shape, jnp.float32))
    return first_of(call(x, count_of(live, x)))


@frozen
class Scores:
    """How a query is compared with keys, and what becomes of a score: see `models.spec.PagedLayer`.

    `norms` are those of queries and keys, which come before they turn; a query is then multiplied by `scale`.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    norms: tuple[Norm, Norm] | None = None
    sinks: jax.Array | None = None
    aligned: bool = False


def attention(
    qkv: jax.Array,
    rotary: tuple[jax.Array, jax.Array] | None,
    pool: tuple[jax.Array, jax.Array],
    *,
    table: jax.Array,
    slot: jax.Array,
    start: jax.Array,
    count: jax.Array,
    group: int,
    scores: Scores,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """qkv [T, K * ((G + 1) * k_width + v_width)], of each kv head its queries, key and value; rotary cos and sin
    [T, k_width / 2], None: nothing turns; keys [P, K, k_width, S], values [P, K, S, v_width], pages by slot in table
    [slots, W] int32 -> mixed [T, K, G, v_width], and the pool with the new keys and values, written in place.

    Row r is the next count[r] of the T tokens, in slot[r] from position start[r] on, all [R] int32. What is behind the last
    row's is left as it was. A token's result is the same bits in whatever rows it and those before it come.
    """
    keys, values = pool
    tokens = qkv.shape[0]
    mixed = jax.ShapeDtypeStruct((tokens, keys.shape[1], group, values.shape[3]), jnp.float32)
    pages = [jax.ShapeDtypeStruct(part.shape, part.dtype) for part in pool]
    call = jax.ffi.ffi_call("cortex_attention", [mixed, *pages], input_output_aliases={7: 1, 8: 2})
    turn = (jnp.zeros((tokens, 0), jnp.float32),) * 2 if rotary is None else rotary
    norms = scores.norms or ()
    out: Any = call(
        qkv,
        *turn,
        table,
        slot,
        start,
        count,
        keys,
        values,
        *(norm.weight for norm in norms),
        *([] if scores.sinks is None else [scores.sinks]),
        group=np.int64(group),
        window=np.int64(scores.window or 0),
        aligned=scores.aligned,
        scale=np.float32(scores.scale),
        soft_cap=np.float32(scores.soft_cap or 0),
        norms=bool(norms),
        epsilon=np.float32(norms[0].epsilon if norms else 0),
        sinks=scores.sinks is not None,
    )
    return out[0], (out[1], out[2])


def sample(
    logits: jax.Array,
    ints: jax.Array,
    floats: jax.Array,
    past: tuple[jax.Array, ...],
    masks: jax.Array,
    *,
    alternatives: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """logits float32 [R, V], ints int32 [R, 9] and floats float32 [R, 6] with the columns that src/sampler.h numbers, past
    int16 and bool [S, V], int32, float32 and uint32 [S, B], masks int32 [R, V / 32 rounded up], or [0, ...] where no row is
    masked, with a bit for each token, the lowest first -> token int32 [R], its log-probability float32 [R], ids int32
    and log-probabilities float32 [R, alternatives] of the likeliest.
    """
    rows = logits.shape[0]
    line, table = (rows,), (rows, alternatives)
    dtypes = ((line, jnp.int32), (line, jnp.float32), (table, jnp.int32), (table, jnp.float32))
    call = jax.ffi.ffi_call("cortex_sample", [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in dtypes])
    out: Any = call(logits, ints, floats, *past, masks)
    return out[0], out[1], out[2], out[3]


def count_of(live: jax.Array | None, rows: jax.Array) -> jax.Array:
    """`live`, or all of them, int32 [1]."""
    return jnp.full((1,), rows.shape[0], jnp.int32) if live is None else live


def attributes(tiles: Tiles) -> dict[str, Any]:
    """How the kernels are told of a layout."""
    storage = tiles.storage
    group = storage.group if storage.coded else 0
    half, offset = storage.coded and storage.half, storage.coded and storage.offset
    return {"codes": np.int64(tiles.code), "group": np.int64(group), "half": half, "offset": offset}


def first_of(result: Any) -> jax.Array:
    """The one array that a call gives."""
    found: jax.Array = result
    return found
