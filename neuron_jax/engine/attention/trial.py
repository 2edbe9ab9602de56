"""Whether a way to compute attention gives on this device what the reference gives; knows shapes and arrays, no requests."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from attrs import asdict, evolve, frozen

from models.sharding import make_mesh, named_sharding
from models.spec import Model, PagedLayer
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.ragged import Ragged, ragged, table

TOKENS = 512
"""Tokens that each row of a trial has pages for."""

CHUNK = 40
LENGTHS = (1, 17, 300, 27, 505, 0)
"""Of the rows of the step; the last is padding. The last `CHUNK` tokens of each are new, or just one."""

STREAM = 2
"""The row that has one new token beside chunks, too."""


@frozen
class Case:
    """What the attention of an engine has to serve."""

    mesh: jax.sharding.Mesh
    dtype: Any
    kv: KVFormat
    pages: int
    page_size: int
    layers: tuple[PagedLayer, ...]  # each kind once

    @property
    def device(self) -> Any:
        return self.mesh.devices.flat[0]

    @property
    def capability(self) -> float:
        """Of an NVIDIA GPU; 0 for anything else."""
        return float(getattr(self.device, "compute_capability", 0)) if self.device.platform == "gpu" else 0.0


def told(case: Case) -> dict[str, Any]:
    """A case of one kind of layer in values of JSON, with the heads that one of its devices has, without its `pages`."""
    (layer,) = case.layers
    alone = evolve(layer, kv_heads=layer.kv_heads // case.mesh.size)
    return {
        "dtype": np.dtype(case.dtype).name,
        "kv": case.kv.name,
        "page_size": case.page_size,
        "layer": asdict(alone),
    }


def case_of(told: Mapping[str, Any], device: Any) -> Case:
    """What was `told`, `pages` along with it, on one device."""
    kv, layer = KVFormat(told["kv"]), PagedLayer(**told["layer"])
    return Case(make_mesh([device]), np.dtype(told["dtype"]), kv, told["pages"], told["page_size"], (layer,))


class Attend(Protocol):
    """Attention of one kind of layer, for the rows of a step: `models.spec.Mixer.attend` without the layer. Where k and v are
    None they are in `cache` already."""

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array | None,
        v: jax.Array | None,
        cache: LayerCache,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]: ...


Make = Callable[[Ragged], Attend]
"""The rows of a step -> attention of one kind of layer for them."""


def kinds(model: Model) -> tuple[PagedLayer, ...]:
    """The kinds of attention in `model`, each once."""
    return tuple(dict.fromkeys(layer for layer in model.layers if isinstance(layer, PagedLayer)))


def tolerance(dtype: Any) -> float:
    """Of the largest value: what sums in another order may differ by, in tensor float 32 where the numbers are float32."""
    return max(8 * float(jnp.finfo(dtype).eps), 1e-3)  # type: ignore[no-untyped-call]


def disagreement(make: Make, reference: Make, case: Case, layer: PagedLayer, *, chunked: bool) -> float:
    """The largest difference of the mixed values to the reference's, over their largest value. NaN where one is NaN."""
    whole = named_sharding(case.mesh, ())  # so that every process of several can read it
    got, wanted = (jax.jit(partial(_step, case, layer, way), out_shardings=whole) for way in (make, reference))
    given, real = _inputs(case, layer, CHUNK if chunked else 1)
    ours, theirs = (np.asarray(step(given), np.float32)[:real] for step in (got, wanted))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _step(case: Case, layer: PagedLayer, make: Make, given: dict[str, jax.Array]) -> jax.Array:
    """One step over a pool that holds the tokens before."""
    cache = _filled(case, layer, (given["k_before"], given["v_before"]), given["table"])
    slot = jnp.arange(len(LENGTHS), dtype=jnp.int32)
    rows = ragged({layer.window: table(given["table"])}, slot, given["start"], given["count"], given["q"].shape[0])
    return make(rows)(given["q"], given["k"], given["v"], cache, given.get("sinks"))[0]


def _inputs(case: Case, layer: PagedLayer, chunk: int) -> tuple[dict[str, jax.Array], int]:
    """Arguments of `_step` for rows on shuffled pages, and how many of the tokens exist."""
    rng = np.random.default_rng(0)
    rows, width, size = len(LENGTHS), TOKENS // case.page_size, layer.k_width
    ends = np.array(LENGTHS, np.int32)
    count = np.minimum(ends, chunk)
    count[STREAM] = 1
    start = ends - count
    tokens = rows * chunk
    table = 1 + rng.permutation(rows * width).reshape(rows, width).astype(np.int32)
    most = rows * width * case.page_size
    before, v_before = (rng.standard_normal((most, layer.kv_heads, wide)) for wide in (size, layer.v_width))
    q = rng.standard_normal((tokens, layer.kv_heads, layer.group, size)) * size**-0.5
    k, v = (rng.standard_normal((tokens, layer.kv_heads, wide)) for wide in (size, layer.v_width))

    def put(array: Any, axes: tuple[str | None, ...] = ()) -> jax.Array:
        placed: jax.Array = jax.device_put(array, named_sharding(case.mesh, axes))
        return placed

    given = {
        "q": put(q.astype(case.dtype), (None, "kv_heads")),
        "k": put(k.astype(case.dtype), (None, "kv_heads")),
        "v": put(v.astype(case.dtype), (None, "kv_heads")),
        "k_before": put(before.astype(case.dtype), (None, "kv_heads")),
        "v_before": put(v_before.astype(case.dtype), (None, "kv_heads")),
        "table": put(table),
        "start": put(start),
        "count": put(count),
    }
    if layer.sinks:
        given["sinks"] = put(rng.standard_normal((layer.kv_heads, layer.group)).astype(np.float32), ("kv_heads",))
    return given, int(count.sum())


def _filled(case: Case, layer: PagedLayer, before: tuple[jax.Array, jax.Array], table: jax.Array) -> LayerCache:
    """A pool with something on every page but the trash page."""
    specs = case.kv.pool(layer, pages=table.size, page_size=case.page_size)
    cache: LayerCache = tuple(jnp.zeros(spec.shape, spec.dtype) for spec in specs)
    token = jnp.arange(before[0].shape[0], dtype=jnp.int32)
    page, offset = 1 + token // case.page_size, token % case.page_size
    return case.kv.write(cache, *before, page=page, offset=offset, real=page > 0)
