"""What a model family offers to whoever runs it; knows arrays and names, must not know pages, files, HTTP or hosts.

Dimension letters, used all over `models/` and `neuron_jax/engine/`:

    T  tokens in one call (flat: any mix of requests)     D  embedding width
    K  kv heads as laid out (see `HeadLayout`)            G  query heads per kv head
    H  head width                                         F  MLP width
    V  vocabulary                                         L  layers
    R  rows (requests) in one call                        C  tokens per row (chunk)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from attrs import frozen

from models.blocks import Storage

Params = Any
"""A pytree of arrays, nested dicts keyed by the names of `Model.param_specs`."""

CacheT = TypeVar("CacheT")


class Attend(Protocol[CacheT]):
    """Mixes tokens. Handed to a model by its runner: paged for serving, plain causal for a notebook or a test.

    `q` [T, K, G, H] comes already multiplied by the softmax scale; `k`, `v` [T, K, H] are not yet in `cache`.
    `cache` is this layer's part of whatever the runner carries (None for plain causal). `window` limits a query to
    the last `window` positions, itself included. Returns the mixed values [T, K, G, H] and the layer's new cache.
    """

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: CacheT, *, window: int | None = None
    ) -> tuple[jax.Array, CacheT]: ...


@runtime_checkable
class RotatingAttend(Protocol):
    """An `Attend` that rotates and scales as well: for a kernel that does all of it in one call.

    `live` int32 [1]: the first so many tokens are real; nobody looks at what is computed of the others.
    """

    live: jax.Array

    def rotated(
        self,
        qkv: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        cache: Any,
        *,
        scale: float,
        window: int | None = None,
    ) -> tuple[jax.Array, Any]:
        """qkv [T, K, G + 2, H] not rotated, rotary cos and sin [T, H / 2] -> mixed [T, K, G, H], the layer's new cache."""
        ...


def live_of(attend: Any) -> jax.Array | None:
    """How many of the tokens that `attend` mixes are real; None: all, or it does not say."""
    return attend.live if isinstance(attend, RotatingAttend) else None


@frozen
class ParamSpec:
    """One parameter before it exists: `shape`, `dtype`, and a logical axis name (or None) per dimension."""

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole parameter, over all devices when sharded."""
        count = 1
        for size in self.shape:
            count *= size
        return count * int(jax.numpy.dtype(self.dtype).itemsize)


@frozen
class CacheSpec:
    """What one token leaves behind in every layer: k and v of [kv_heads, head_dim], `kv_heads` as laid out."""

    layers: int
    kv_heads: int
    head_dim: int


class Model(Protocol):
    """One family bound to one checkpoint's config, a tensor-parallel degree and a quantization. Holds no arrays.

    `param_specs` has the same tree as `Params`. `forward` and `logits` are pure and may be jitted, differentiated and
    instrumented. `widest` is the number of values of a token's widest activation. `rules` maps checkpoint tensors to
    parameters (see `models.mapping`).
    """

    architecture: str
    vocab_size: int
    max_positions: int
    widest: int
    cache_spec: CacheSpec
    param_specs: Mapping[str, Any]
    rules: Sequence[Any]

    def forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Attend[CacheT],
        cache: Sequence[CacheT],
    ) -> tuple[jax.Array, tuple[CacheT, ...]]:
        """tokens [T] int32, positions [T] int32, one cache entry per layer -> final normed hidden [T, D], new cache."""
        ...

    def logits(self, params: Params, hidden: jax.Array, live: jax.Array | None = None) -> jax.Array:
        """hidden [R, D], of which the first `live` [1] rows are wanted -> float32 logits [R, V]; padding of a sharded
        vocabulary is cut off.
        """
        ...


class Family(Protocol):
    """A family's entry in `models.registry`.

    `config` is the checkpoint's own config.json (GGUF headers are translated to it by `neuron_jax.weights`). `quant` is
    "none" (weights in `dtype`), "int8" (int8 weights per output channel, dynamic int8 activations), "int4" (rounded in
    groups of 32) or "fp8" (per output channel; activations, too, where the device multiplies float8). With `native`, for
    one CPU in float32, the kernels of `models.native` compute it: "stored" (as the checkpoint has them, exact), "int8"
    and "int4" (rounded in groups of 32), "none" (float32); activations stay float32. `storage` then says what the
    checkpoint's tensors are stored as. Raises `models.errors.ModelError` with every misfit when `config` asks for
    something the family does not do.
    """

    def build(
        self,
        config: Mapping[str, Any],
        *,
        tensor_parallel: int = 1,
        quant: str = "none",
        dtype: Any = None,
        native: bool = False,
        storage: Mapping[str, Storage] | None = None,
    ) -> Model: ...
