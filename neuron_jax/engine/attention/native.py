"""Attention by the native CPU kernel, over a pool laid out for it; knows pages and rows, no requests.

One call rotates, stores and mixes. A page holds keys with the dimension outside, so that 16 tokens are one vector; what a
token gets is the same bits whatever the batch, the chunk and the page size (see src/attention.h).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from attrs import Factory, frozen

from models.native import ops
from models.native.library import unavailable
from models.spec import ParamSpec
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.ragged import Ragged
from neuron_jax.engine.attention.trial import Case

LANES = 16
"""Pages and heads are whole vectors."""


@frozen
class NativeKV(KVFormat):
    """float32 as the kernel keeps it; nothing else reads or writes it."""

    name: str = "float32"

    def layer(self, *, pages: int, page_size: int, kv_heads: int, head_dim: int) -> tuple[ParamSpec, ...]:
        """Keys [pages + 1, K, H, page_size] and values [pages + 1, K, page_size, H]."""
        axes = (None, "kv_heads", None, None)
        keys = ParamSpec((pages + 1, kv_heads, head_dim, page_size), self.dtype, axes)
        return keys, ParamSpec((pages + 1, kv_heads, page_size, head_dim), self.dtype, axes)


@frozen
class NativeAttend:
    """An `Attend` for the rows of a step."""

    rows: Ragged
    live: jax.Array = Factory(lambda self: self.rows.count.sum(keepdims=True, dtype=jnp.int32), takes_self=True)

    def rotated(
        self,
        qkv: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        cache: LayerCache,
        *,
        scale: float,
        window: int | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """See `models.spec.RotatingAttend`."""
        keys, values = cache
        return ops.attention(
            qkv,
            rotary,
            (keys, values),
            table=self.rows.table,
            slot=self.rows.slot,
            start=self.rows.start,
            count=self.rows.count,
            scale=scale,
            window=window,
        )

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: LayerCache, *, window: int | None = None
    ) -> tuple[jax.Array, LayerCache]:
        """See `models.spec.Attend`: what is rotated already is turned by nothing."""
        qkv = jnp.concatenate([q, k[:, :, None], v[:, :, None]], axis=2)
        half = (q.shape[0], q.shape[-1] // 2)
        still = jnp.ones(half, jnp.float32), jnp.zeros(half, jnp.float32)
        return self.rotated(qkv, still, cache, scale=1.0, window=window)


def refuses(case: Case) -> str | None:
    """Why the kernel cannot serve `case`; None when it can."""
    if case.device.platform != "cpu" or case.mesh.size > 1:
        return "serves one CPU device"
    return misfit(case.kv, case.dtype, case.page_size, [layer.head_dim for layer in case.layers]) or unavailable()


def misfit(kv: KVFormat, dtype: Any, page_size: int, heads: Sequence[int]) -> str | None:
    """Why the kernel cannot serve heads of these widths over such a cache, on whatever device."""
    if kv.name != "float32" or jnp.dtype(dtype) != jnp.float32:
        return f"computes in float32 over a float32 cache, not in {jnp.dtype(dtype).name} over {kv.name}"
    if page_size % LANES or any(width % LANES for width in heads):
        return f"takes pages and heads of multiples of {LANES}"
    return None
