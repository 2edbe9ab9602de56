"""Attention of one kind of layer by our own kernel: stores and mixes the tokens of a step. Knows no requests, no blocks."""

from typing import Any

import jax
import jax.numpy as jnp
from attrs import define, evolve
from jax import lax
from jax.sharding import PartitionSpec

from models.sharding import BOTH
from neuron_jax.engine.attention import flash
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.ragged import Ragged, places
from neuron_jax.engine.attention.trial import Case
from neuron_jax.engine.attention.work import Work, work


@define(eq=False)
class PallasAttend:
    """See `models.spec.Mixer.attend`. All layers of the kind hand the same `turns` on, which are zero in between."""

    kernel: flash.Kernel
    mesh: jax.sharding.Mesh
    kv: KVFormat
    rows: Ragged
    work: Work
    turns: jax.Array

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array | None,
        v: jax.Array | None,
        cache: LayerCache,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """The mixed values are in q's dtype; those of padding tokens are zeros."""
        window, size = self.kernel.layer.window, self.kernel.page_size
        cache = self.kv.write(cache, k, v, **places(self.rows, window, size))
        mixed, self.turns = self._each_device(q, self._readable(cache), sinks)
        return mixed, cache

    def _readable(self, cache: LayerCache) -> LayerCache:
        if self.kernel.converts:
            return cache
        k, v, *scales = cache
        return (*(lax.bitcast_convert_type(leaf, jnp.int8) for leaf in (k, v)), *scales)

    def _each_device(self, q: jax.Array, cache: LayerCache, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """The kernel, on each device for its own heads: XLA cannot split what it does not know."""

        def local(*given: Any) -> tuple[jax.Array, jax.Array]:
            *sharded, sinks, table, work = given
            return flash.attend(self.kernel, *sharded, table=table, work=work, sinks=sinks)

        given = (q, cache, self.turns, sinks, self.rows.tables[self.kernel.layer.window].lines, self.work)
        if self.mesh.size == 1:
            return local(*given)
        first, second, third = (PartitionSpec(*(None,) * before, BOTH) for before in range(3))
        specs = (second, third, second, None if sinks is None else first, PartitionSpec(), PartitionSpec())
        split = jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=(second, second), check_vma=False)
        found: tuple[jax.Array, jax.Array] = split(*given)
        return found


def make(case: Case, rows: Ragged, *, interpret: bool = False) -> PallasAttend:
    """For the rows of a step."""
    (layer,) = case.layers
    heads = layer.kv_heads
    layer = evolve(layer, kv_heads=heads // case.mesh.size)
    singles = min(rows.row.shape[0], rows.slot.shape[0])
    size = flash.sizes(layer, singles, case.kv.dtype.itemsize, case.capability)
    converts = case.kv.name != "fp8" or case.capability >= flash.FP8
    kernel = flash.Kernel(
        layer,
        size,
        case.page_size,
        singles,
        0,
        rows.tables[layer.window].first,
        case.kv.quantized,
        converts=converts,
        interpret=interpret,
    )
    pieces = work(rows, kernel.tile)
    kernel = evolve(kernel, tiles=0 if pieces.tiles is None else pieces.tiles.shape[0])
    turns = jnp.zeros((singles, heads * kernel.parts), jnp.int32)
    return PallasAttend(kernel, case.mesh, case.kv, rows, pieces, turns)
