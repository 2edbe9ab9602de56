"""The `Mixer` that an engine hands its model: for each kind of layer what was chosen for it. Knows rows, no requests."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from attrs import Factory, frozen

from models.native.ops import Norm
from models.spec import PagedLayer, Recurrence, RecurrentLayer
from neuron_jax.engine import recurrent
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.native import NativeAttend
from neuron_jax.engine.attention.ragged import Ragged, places
from neuron_jax.engine.attention.storing import Storing, by_xla
from neuron_jax.engine.attention.trial import Attend
from neuron_jax.engine.attention.turned import Heads
from neuron_jax.engine.recurring import Recurring


@frozen
class StepMixer:
    """`models.spec.Mixer` for the rows of a step. With `native` all attention is the native kernel's; the tokens of the layers
    in `storing` are turned and stored by one kernel, whichever mixes them, and one goes through the states of those in
    `recurring`.
    """

    rows: Ragged
    attention: Mapping[PagedLayer, Attend]
    native: bool
    snapshots: recurrent.Snapshots
    kv: KVFormat
    storing: Storing = Factory(dict)
    recurring: Recurring = Factory(dict)
    live: jax.Array | None = Factory(lambda self: _live(self.rows) if self.native else None, takes_self=True)

    @property
    def rotates(self) -> bool:
        return self.native or bool(self.storing)

    def attend(
        self,
        layer: PagedLayer,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: LayerCache,
        *,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """See `models.spec.Mixer`."""
        assert layer.sinks == (sinks is not None), f"{layer} and its sinks"
        return self.attention[layer](q, k, v, cache, sinks)

    def attend_rotated(
        self,
        layer: PagedLayer,
        qkv: jax.Array,
        rotary: tuple[jax.Array, jax.Array] | None,
        cache: LayerCache,
        *,
        scale: float,
        norms: tuple[Norm, Norm] | None = None,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """See `models.spec.Mixer`."""
        assert layer.sinks == (sinks is not None), f"{layer} and its sinks"
        attend = self.attention[layer]
        if isinstance(attend, NativeAttend):
            return attend.rotated(qkv, rotary, cache, scale=scale, norms=norms, sinks=sinks)
        store = self.storing.get(layer) or by_xla(self.kv)
        where = places(self.rows, layer.window, self.snapshots.page_size)
        q, cache = store(qkv, rotary, cache, Heads(scale, norms), **where)
        return attend(q, None, None, cache, sinks)

    def recur(self, layer: RecurrentLayer, rule: Recurrence, inputs: Any, cache: LayerCache) -> tuple[Any, LayerCache]:
        """See `models.spec.Mixer`."""
        assert len(cache) == 2 * len(layer.state), f"{layer} and its states"
        if self.native and layer.native:
            return rule.native(inputs, cache, recurrent.state_rows(self.rows, self.snapshots))
        if layer in self.recurring:
            return self.recurring[layer](rule, inputs, cache, recurrent.state_rows(self.rows, self.snapshots))
        return recurrent.recur(rule, inputs, cache, self.rows, self.snapshots)


def _live(rows: Ragged) -> jax.Array:
    return rows.count.sum(keepdims=True, dtype=jnp.int32)
