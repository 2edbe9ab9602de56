"""From a `Dense` and its table of names to a `models.spec.Model`; must not know any family."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import evolve, frozen

from models.adapters import Chosen
from models.dense.ahead_rules import ahead_rules, own_names
from models.dense.layout import Layout
from models.dense.names import Names
from models.dense.network import Decoder
from models.dense.record import Dense
from models.dense.rules import EXACT, rules
from models.errors import ModelError
from models.functional import Functional, functional
from models.linears import Linears, check, keep, tile
from models.mapping import Ignore, Rule
from models.native.tiles import Tiles
from models.nn import Live
from models.spec import CacheT, LayerSpec, Mixer, Params, RecurrentLayer, Transform
from models.storage import Storage

TABLES = ("embed", "head", "per_layer.embed")
"""Paths of what tokens are looked up in."""


@frozen(eq=False)  # compared and hashed by identity: a model may be a static argument of jit
class DenseModel:
    """`models.spec.Model` of a dense decoder."""

    architecture: str
    vocab_size: int
    max_positions: int
    widest: int
    experts: tuple[int, int]
    layers: Sequence[LayerSpec]
    drafts: bool
    rules: Sequence[Rule | Ignore]
    tiles: Mapping[str, Tiles]
    coded: frozenset[str]
    _transform: Transform | None
    _network: Functional[Decoder]

    @property
    def param_specs(self) -> Mapping[str, Any]:
        return self._network.param_specs

    def forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        mixer: Mixer[CacheT],
        cache: Sequence[CacheT],
    ) -> tuple[jax.Array, tuple[CacheT, ...]]:
        """See `models.spec.Model`."""
        network = self._network.bind(params.params if isinstance(params, Chosen) else params)
        if isinstance(params, Chosen):
            params.attach(network)
        if self._transform is not None:
            # Around the module's own rules for attributes: this is not one of its parameters.
            object.__setattr__(network, "transform", self._transform)
        if not self.drafts:
            return network(tokens, positions, mixer, cache)
        *own, last = cache
        hidden, left = network(tokens, positions, mixer, own)
        return hidden, (*left, last)

    def draft(
        self,
        params: Params,
        hidden: jax.Array,
        text: tuple[jax.Array, jax.Array],
        mixer: Mixer[CacheT],
        entry: CacheT,
    ) -> tuple[jax.Array, CacheT]:
        """See `models.spec.Drafter`."""
        return self._network.bind(params).drafted(hidden, *text, mixer, entry)

    def transformed(self, transform: Transform) -> "DenseModel":
        """See `models.spec.Model`."""
        return evolve(self, transform=transform)

    def logits(self, params: Params, hidden: jax.Array, live: Live = None) -> jax.Array:
        """See `models.spec.Model`."""
        logits = self._network.bind(params).logits(hidden, live)
        return logits[:, : self.vocab_size]


def _channels(layer: LayerSpec | None) -> int:
    """What a recurrent layer's convolution takes of each token."""
    return prod(layer.state[0].shape[1:]) if isinstance(layer, RecurrentLayer) else 0


def build_dense(
    c: Dense,
    names: Names,
    *,
    ignored: tuple[str, ...] = (),
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
    quant: str = "none",
    dtype: Any = None,
    native: bool = False,
    storage: Mapping[str, Storage] | None = None,
    draft: bool = False,
) -> DenseModel:
    """The model of `c`, whose tensors have these names (see `models.dense.names`); the rest as in `models.spec.Build`."""
    assert tensor_parallel >= 1, f"tensor_parallel {tensor_parallel}"
    check(quant, native=native)
    _check_parts(c, tensor_parallel, expert_parallel)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    layout = Layout.plan(c, (tensor_parallel, expert_parallel), quant, np.dtype(dtype), native)
    made = rules(c, layout, names, ignored)
    if draft:
        made = (*made, *_ahead(c, layout, names))
    tiles: dict[str, Tiles] = {}
    if native:
        assert tensor_parallel == 1, "the native kernels see one device"
        assert layout.dtype == np.float32, f"the native kernels compute in float32, not {layout.dtype}"
        made, tiles = tile(
            made, storage, quant, gated=("gate_up",) * (c.activation.halves - 1), tables=TABLES, exact=EXACT
        )
    made, coded = keep(made, storage)
    make = Linears(quant, layout.dtype, tensor_parallel, expert_parallel, tiles, coded)
    heads = layout.heads.slots, layout.heads.width, tensor_parallel
    layers = c.layers_in(*heads)
    ahead = evolve(c, stack=(c.ahead,)).layers_in(*heads)[0] if draft else None
    return DenseModel(
        architecture=c.architecture,
        vocab_size=c.vocab_size,
        max_positions=c.max_positions,
        widest=max(*_widths(c), *map(_channels, layers), 2 * c.hidden_size * draft),
        experts=max(((found.count, found.active) for found in c.mixtures), default=(1, 1)),
        layers=c.kept(layers) if ahead is None else (*c.kept(layers), ahead),
        drafts=draft,
        rules=made,
        tiles=tiles,
        coded=coded,
        transform=None,
        network=functional(lambda: Decoder(c, layout, layers, make, ahead)),
    )


def _ahead(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    one = evolve(c, stack=(c.ahead,), per_layer=None, scalars=False)
    own, usual = (
        [rule for rule in rules(one, layout, table, ()) if isinstance(rule, Rule) and rule.keys[0] == "layers"]
        for table in (own_names(names), names)
    )
    return ahead_rules(c, layout, own, usual)


def _check_parts(c: Dense, devices: int, parts: int) -> None:
    """Raises ModelError where whole experts cannot be split so."""
    misfits = []
    if devices % parts:
        misfits.append(f"it does not divide the devices, tensor_parallel = {devices}")
    if parts > 1:
        misfits += [] if c.mixtures else ["the model has no experts"]
        misfits += [f"{one.count} experts do not divide into {parts} parts" for one in c.mixtures if one.count % parts]
    if misfits:
        raise ModelError(f"expert_parallel = {parts}", misfits)


def _widths(c: Dense) -> list[int]:
    """Of what a matrix takes or gives of one row; what all heads put in at once where each has a latent of its own."""
    dense = [c.of(layer).intermediate_size for layer in c.stack if layer.experts is None and layer.mlp]
    kinds = [layer.latent for layer in c.stack if layer.latent is not None]
    per_head = max((max(kind.rank, kind.still, kind.value) for kind in kinds), default=0)
    experts = (max(found.width, found.shared) for found in c.mixtures)
    return [c.hidden_size, *dense, *experts, c.query_heads * per_head]
