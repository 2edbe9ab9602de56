"""The kernels of experts as functions of traced arrays, float32 throughout; knows their arguments, no layers.

Only for programs of one CPU device, and only where `library.unavailable()` is None. Kernels: src/experts.h.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import evolve, frozen

from models.dense.record import Experts
from models.native.ops import Gate, Norm, attributes, count_of, first_of
from models.native.tiles import Tiles


@frozen
class Routed:
    """Rows sorted by the expert that they go through, those of one expert by token: the token and the share of each, and
    where each expert's begin. int32 [T * active], float32 [T * active], int32 [E + 1]; rows from begin[E] on are none.
    """

    token: jax.Array
    share: jax.Array
    begin: jax.Array

    @property
    def whole(self) -> "Routed":
        """With shares of one."""
        return evolve(self, share=jnp.ones_like(self.share))

    def scaled(self, scales: jax.Array) -> "Routed":
        """With each share times its expert's of `scales` [E]."""
        expert = jnp.searchsorted(self.begin[1:], jnp.arange(self.share.shape[0], dtype=jnp.int32), side="right")
        return evolve(self, share=self.share * jnp.take(scales, expert, mode="clip"))


def route(logits: jax.Array, experts: Experts, correction: jax.Array | None, live: jax.Array | None) -> Routed:
    """logits [T, E] and correction [E] -> which rows go through which experts. Of tokens that are not live there are none."""
    tokens, count = logits.shape
    pairs = (tokens * experts.active,)
    shapes = [(pairs, jnp.int32), (pairs, jnp.float32), ((count + 1,), jnp.int32)]
    call = jax.ffi.ffi_call("cortex_route", [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes])
    found: Any = call(
        logits,
        count_of(live, logits),
        *([] if correction is None else [correction]),
        correction=correction is not None,
        active=np.int64(experts.active),
        groups=np.int64(experts.groups),
        kept_groups=np.int64(experts.kept_groups),
        group_best=np.int64(experts.group_best),
        sigmoid=experts.scoring == "sigmoid",
        renormalised=experts.renormalised,
        scale=np.float32(experts.scale),
    )
    return Routed(*found)


def gathered(
    x: jax.Array,
    tiles: Tiles,
    matrix: jax.Array,
    routed: Routed,
    *,
    gate: Gate,
    norm: Norm | None = None,
    bias: jax.Array | None = None,
    shared: bool = False,
) -> jax.Array:
    """x [T, K], matrix as `tiles` packs a stack of them, bias [E, 2, N] of gated ones, else [E, N] -> of each row what its
    expert's gate makes of the product with norm(x of its token), [T * active, N]; with `shared` of that times its share.
    """
    given = [None if norm is None else norm.weight, bias, routed.share if shared else None]
    rows = routed.token.shape[0]
    call = jax.ffi.ffi_call("cortex_gathered", jax.ShapeDtypeStruct((rows, tiles.outputs), jnp.float32))
    return first_of(
        call(
            x,
            matrix,
            routed.token,
            routed.begin,
            *(part for part in given if part is not None),
            **attributes(tiles),
            norm=norm is not None,
            bias=bias is not None,
            shares=shared,
            gate=gate.number(tiles),
            limit=gate.most,
            epsilon=np.float32(0 if norm is None else norm.epsilon),
        )
    )


def summed(
    x: jax.Array,
    tiles: Tiles,
    matrix: jax.Array,
    routed: Routed,
    tokens: int,
    *,
    residual: jax.Array | None = None,
    bias: jax.Array | None = None,
    live: jax.Array | None = None,
) -> jax.Array:
    """x [T * active, K] of each row, residual [T, N], bias [E, N] -> the residual and, of each token's rows, the sum of the
    products with their experts, by their shares, [T, N].
    """
    given = [bias, residual]
    call = jax.ffi.ffi_call("cortex_summed", jax.ShapeDtypeStruct((tokens, tiles.outputs), jnp.float32))
    return first_of(
        call(
            x,
            matrix,
            routed.token,
            routed.share,
            routed.begin,
            jnp.full((1,), tokens, jnp.int32) if live is None else live,
            *(part for part in given if part is not None),
            **attributes(tiles),
            bias=bias is not None,
            residual=residual is not None,
        )
    )
