"""Attention by the native CPU kernel, over a pool laid out for it; knows pages and rows, no requests.

One call rotates, stores and mixes. A page holds keys with the dimension outside, so that 16 tokens are one vector; what a
token gets is the same bits whatever the batch, the chunk and the page size (see src/attention.h).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen

from models.native import ops
from models.native.library import unavailable
from models.spec import PagedLayer, ParamSpec
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.ragged import Ragged
from neuron_jax.engine.attention.trial import Case

LANES = 16
"""Pages and heads are whole vectors."""


@frozen
class NativeKV(KVFormat):
    """float32 as the kernel keeps it; nothing else reads or writes it."""

    name: str = "float32"

    def pool(self, layer: PagedLayer, *, pages: int, page_size: int) -> tuple[ParamSpec, ...]:
        """Keys [pages + 1, K, H, page_size] and values [pages + 1, K, page_size, H]."""
        axes = (None, "kv_heads", None, None)
        keys = ParamSpec((pages + 1, layer.kv_heads, layer.k_width, page_size), self.dtype, axes)
        return keys, ParamSpec((pages + 1, layer.kv_heads, page_size, layer.v_width), self.dtype, axes)


@frozen
class NativeAttend:
    """Attention of one kind of layer for the rows of a step."""

    layer: PagedLayer
    rows: Ragged

    def rotated(
        self,
        qkv: jax.Array,
        rotary: tuple[jax.Array, jax.Array] | None,
        cache: LayerCache,
        *,
        scale: float,
        norms: tuple[ops.Norm, ops.Norm] | None = None,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """See `models.spec.Mixer.attend_rotated`; qkv [T, ...], of each kv head its queries, its key and its value."""
        keys, values = cache
        return ops.attention(
            qkv.reshape(qkv.shape[0], -1),
            rotary,
            (keys, values),
            table=self.rows.tables[self.layer.window].whole(),
            slot=self.rows.slot,
            start=self.rows.start,
            count=self.rows.count,
            group=self.layer.group,
            scores=ops.Scores(scale, self.layer.window, self.layer.soft_cap, norms, sinks, self.layer.aligned),
        )

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array | None,
        v: jax.Array | None,
        cache: LayerCache,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """See `models.spec.Mixer.attend`: what is rotated already is turned by nothing."""
        assert k is not None, "nobody else stores for this kernel"
        assert v is not None, "nobody else stores for this kernel"
        qkv = jnp.concatenate([q.reshape(*q.shape[:2], -1), k, v], axis=2)
        return self.rotated(qkv, None, cache, scale=1.0, sinks=sinks)


def refuses(case: Case) -> str | None:
    """Why the kernel cannot serve `case`; None when it can."""
    if case.device.platform != "cpu" or case.mesh.size > 1:
        return "serves one CPU device"
    return misfit(case.kv, case.dtype, case.page_size, case.layers) or unavailable()


def misfit(kv: KVFormat, dtype: Any, page_size: int, layers: Sequence[PagedLayer]) -> str | None:
    """Why the kernel cannot serve these layers over such a cache, on whatever device."""
    if kv.name != "float32" or jnp.dtype(dtype) != jnp.float32:
        return f"computes in float32 over a float32 cache, not in {jnp.dtype(dtype).name} over {kv.name}"
    if page_size % LANES or any(layer.k_width % LANES or layer.v_width % LANES for layer in layers):
        return f"takes pages and heads of multiples of {LANES}"
    return None
