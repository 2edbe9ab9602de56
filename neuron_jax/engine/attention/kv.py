"""How a token's keys and values are stored in the pages of a layer: number formats; knows arrays, not who asks for them.

A pool of a layer is k [pages + 1, page_size, K, k_width] and v [pages + 1, page_size, K, v_width], and for the 8-bit
formats float32 scales k_scale and v_scale, each [pages + 1, page_size, K]: one for each token and head, so that the rounding
of a token depends on itself alone, whoever else is written in the same step. Readers multiply scores by k's scale and
weights by v's: a pool is never widened as a whole.
"""

from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen

from models.errors import ModelError
from models.spec import PagedLayer, ParamSpec

LayerCache = tuple[jax.Array, ...]
"""One layer's pool."""

KV_DTYPES = ("auto", "float32", "bfloat16", "int8", "fp8")
"""What `EngineSpec.kv_dtype` may be."""

_STORED: dict[str, Any] = {
    "float32": jnp.float32,
    "bfloat16": jnp.bfloat16,
    "int8": jnp.int8,
    "fp8": jnp.float8_e4m3fn,
}
_LARGEST = {"int8": 127.0, "fp8": 448.0}
"""What a token's largest value of a head is stored as."""


@frozen
class Tokens:
    """Keys and values of [..., K, H] as stored, and of the 8-bit formats their scales [..., K]."""

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None


@frozen
class KVFormat:
    """One of KV_DTYPES but "auto"."""

    name: str

    @property
    def dtype(self) -> Any:
        return jnp.dtype(_STORED[self.name])

    @property
    def quantized(self) -> bool:
        return self.name in _LARGEST

    def token_bytes(self, layer: PagedLayer) -> int:
        """Bytes of one token in `layer`."""
        return sum(leaf.nbytes for leaf in self.pool(layer, pages=0, page_size=1))

    def pool(self, layer: PagedLayer, *, pages: int, page_size: int) -> tuple[ParamSpec, ...]:
        """The arrays of the layer's pool; `pages` without the trash page."""
        shape, axes = (pages + 1, page_size, layer.kv_heads), (None, None, "kv_heads")
        values = [ParamSpec((*shape, width), self.dtype, (*axes, None)) for width in (layer.k_width, layer.v_width)]
        scales = ParamSpec(shape, jnp.dtype(jnp.float32), axes)
        return (*values, scales, scales) if self.quantized else tuple(values)

    def write(
        self,
        cache: LayerCache,
        k: jax.Array | None,
        v: jax.Array | None,
        *,
        page: jax.Array,
        offset: jax.Array,
        real: jax.Array,
    ) -> LayerCache:
        """The pool with k [T, K, k_width] and v [T, K, v_width] at `page` [T] and `offset` [T]; None: they are in it already.

        Tokens that are not `real` [T] are zeros. They go to the trash page, which stays zero: a masked weight of 0 times a
        NaN that one request left there would reach all others.
        """
        if k is None or v is None:
            return cache
        k, v = (jnp.where(real[:, None, None], part, jnp.zeros((), part.dtype)) for part in (k, v))
        new: LayerCache = (k, v)
        if self.quantized:
            (k, k_scale), (v, v_scale) = self._round(k), self._round(v)
            new = (k, v, k_scale, v_scale)
        return tuple(
            pool.at[page, offset].set(leaf.astype(pool.dtype), mode="promise_in_bounds")
            for pool, leaf in zip(cache, new, strict=True)
        )

    def read(self, cache: LayerCache, pages: jax.Array) -> Tokens:
        """The tokens of `pages` [R, N] in their order: [R, N * page_size, ...]."""
        return Tokens(*(pool[pages].reshape(pages.shape[0], -1, *pool.shape[2:]) for pool in cache))

    def _round(self, values: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[T, K, H] -> as stored, and scales [T, K]."""
        wide = values.astype(jnp.float32)
        scale = jnp.max(jnp.abs(wide), axis=-1) / _LARGEST[self.name]
        steps = wide / jnp.where(scale > 0, scale, jnp.float32(1))[..., None]
        # XLA cuts the fraction off where it makes an integer of a float.
        return (jnp.round(steps) if self.name == "int8" else steps).astype(self.dtype), scale


def choose_kv(asked: str, platform: str) -> tuple[KVFormat, str]:
    """The format of `EngineSpec.kv_dtype`, and why. Raises ModelError when it is none of KV_DTYPES."""
    if asked not in KV_DTYPES:
        raise ModelError(f"kv_dtype {asked!r}", [f"allowed are {', '.join(KV_DTYPES)}"])
    if asked != "auto":
        return KVFormat(asked), "as asked"
    compute = "float32" if platform == "cpu" else "bfloat16"
    return KVFormat(compute), f"auto: {compute}, what the model computes in"
