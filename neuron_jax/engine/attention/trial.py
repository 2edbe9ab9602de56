"""Whether a way to compute attention gives on this device what the reference gives; knows shapes and arrays, no requests."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen

from models.sharding import named_sharding
from models.spec import Attend, Model, ParamSpec
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.ragged import Ragged, ragged

TOKENS = 512
"""Tokens that each row of a trial has pages for."""

CHUNK = 40
LENGTHS = (1, 17, 300, 27, 505, 0)
"""Of the rows of the step; the last is padding. The last `CHUNK` tokens of each are new, or just one."""


@frozen
class Layer:
    """How a model's layers call attention: whole numbers of heads over all devices, H, and the window or None."""

    kv_heads: int
    group: int
    head_dim: int
    window: int | None


@frozen
class Case:
    """What the attention of an engine has to serve."""

    mesh: jax.sharding.Mesh
    dtype: Any
    kv: KVFormat
    pages: int
    page_size: int
    layers: tuple[Layer, ...]  # each kind once

    @property
    def device(self) -> Any:
        return self.mesh.devices.flat[0]

    @property
    def capability(self) -> float:
        """Of an NVIDIA GPU; 0 for anything else."""
        return float(getattr(self.device, "compute_capability", 0)) if self.device.platform == "gpu" else 0.0


Make = Callable[[Ragged], Attend[LayerCache]]
"""The rows of a step -> its `Attend`."""


def kinds(model: Model) -> tuple[Layer, ...]:
    """How the layers of `model` call attention, found by letting it call. Nothing is computed."""
    found: list[Layer] = []

    def note(q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, *, window: int | None = None) -> Any:
        del k, v
        _, kv_heads, group, size = q.shape
        found.append(Layer(kv_heads, group, size, window))
        return q, cache

    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    params = jax.tree.map(
        lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype),
        model.param_specs,
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    layers = model.cache_spec.layers
    jax.eval_shape(lambda params, one: model.forward(params, one, one, note, (None,) * layers), params, one)
    return tuple(dict.fromkeys(found))


def tolerance(dtype: Any) -> float:
    """Of the largest value: what sums in another order may differ by, in tensor float 32 where the numbers are float32."""
    return max(8 * float(jnp.finfo(dtype).eps), 1e-3)  # type: ignore[no-untyped-call]


def disagreement(make: Make, reference: Make, case: Case, layer: Layer, *, chunked: bool) -> float:
    """The largest difference of the mixed values to the reference's, over their largest value. NaN where one is NaN."""
    whole = named_sharding(case.mesh, ())  # so that every process of several can read it
    got, wanted = (jax.jit(partial(_step, case, layer, way), out_shardings=whole) for way in (make, reference))
    given, real = _inputs(case, layer, CHUNK if chunked else 1)
    ours, theirs = (np.asarray(step(given), np.float32)[:real] for step in (got, wanted))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _step(case: Case, layer: Layer, make: Make, given: dict[str, jax.Array]) -> jax.Array:
    """One step over a pool that holds the tokens `before`."""
    cache = _filled(case, layer, given["before"], given["table"])
    slot = jnp.arange(len(LENGTHS), dtype=jnp.int32)
    rows = ragged(given["table"], slot, given["start"], given["count"], given["q"].shape[0])
    return make(rows)(given["q"], given["k"], given["v"], cache, window=layer.window)[0]


def _inputs(case: Case, layer: Layer, chunk: int) -> tuple[dict[str, jax.Array], int]:
    """Arguments of `_step` for rows on shuffled pages, and how many of the tokens exist."""
    rng = np.random.default_rng(0)
    rows, width, size = len(LENGTHS), TOKENS // case.page_size, layer.head_dim
    ends = np.array(LENGTHS, np.int32)
    start, count = np.maximum(ends - chunk, 0), np.minimum(ends, chunk)
    tokens = rows * chunk
    table = 1 + rng.permutation(rows * width).reshape(rows, width).astype(np.int32)
    before = rng.standard_normal((2, rows * width * case.page_size, layer.kv_heads, size))
    q = rng.standard_normal((tokens, layer.kv_heads, layer.group, size)) * size**-0.5
    k, v = rng.standard_normal((2, tokens, layer.kv_heads, size))

    def put(array: Any, axes: tuple[str | None, ...] = ()) -> jax.Array:
        placed: jax.Array = jax.device_put(array, named_sharding(case.mesh, axes))
        return placed

    given = {
        "q": put(q.astype(case.dtype), (None, "kv_heads")),
        "k": put(k.astype(case.dtype), (None, "kv_heads")),
        "v": put(v.astype(case.dtype), (None, "kv_heads")),
        "before": put(before.astype(case.dtype), (None, None, "kv_heads")),
        "table": put(table),
        "start": put(start),
        "count": put(count),
    }
    return given, int(count.sum())


def _filled(case: Case, layer: Layer, before: jax.Array, table: jax.Array) -> LayerCache:
    """A pool with something on every page but the trash page."""
    specs = case.kv.layer(pages=table.size, page_size=case.page_size, kv_heads=layer.kv_heads, head_dim=layer.head_dim)
    cache: LayerCache = tuple(jnp.zeros(spec.shape, spec.dtype) for spec in specs)
    token = jnp.arange(before.shape[1], dtype=jnp.int32)
    page, offset = 1 + token // case.page_size, token % case.page_size
    return case.kv.write(cache, before[0], before[1], page=page, offset=offset, real=page > 0)
