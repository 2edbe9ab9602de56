"""How the linear maps of a model are stored and computed: decided once, for every family; knows no family and no file.

XLA computes them from `kernel` arrays that may be sharded; the native kernels of one CPU from tiles in the narrowest
storage that a checkpoint's own tensors allow, or that was asked for.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

from attrs import evolve, field, frozen

from models.dense.record import Activation, Experts
from models.errors import ModelError
from models.experts_native import ExpertsNative
from models.experts_xla import ExpertsSpread, ExpertsXla
from models.linears_heads import HeadMaps, TiledHeadMaps
from models.linears_native import TiledLinear, TiledTable
from models.linears_xla import (
    NARROW,
    ExactLinear,
    Fp8Table,
    Linear,
    NarrowLinear,
    VocabTable,
    fills_groups,
    store_mxfp4,
    store_narrow,
)
from models.mapping import Ignore, Rule, Store, store_as, store_each, store_int8, store_kernel
from models.native.tiles import Tiles
from models.nn import Dims
from models.rounding import INT4, INT8, int4_by_group, int8_by_group
from models.storage import FLOAT32, MXFP4, Array, Blocks, Storage, to_storage

NATIVE = ("none", "stored", "int8", "int4")
XLA = ("none", "stored", "int8", *NARROW)


def check(quant: str, *, native: bool) -> None:
    """Raises ModelError when `quant` is not one of NATIVE, or of XLA."""
    allowed = NATIVE if native else XLA
    if quant not in allowed:
        where = "the native kernels" if native else "XLA"
        raise ModelError(f"quant {quant!r}", [f"allowed with {where} are {', '.join(allowed)}"])


@frozen
class Linears:
    """Makes a model's linear maps for `devices`, which are split over `expert_parallel` parts of the experts. `tiles` by
    parameter path for the native kernels; empty for XLA. `coded`: the paths of matrices that stay MXFP4, for XLA.
    """

    quant: str
    dtype: Any
    devices: int = 1
    expert_parallel: int = 1
    tiles: Mapping[str, Tiles] = field(factory=dict)
    coded: Collection[str] = ()
    prefix: str = ""

    def within(self, prefix: str) -> "Linears":
        """The same for parameters under `prefix`, which ends with a dot."""
        return evolve(self, prefix=self.prefix + prefix)

    def __call__(
        self, name: str, inputs: Dims, outputs: Dims, *, bias: bool, fine: bool = False
    ) -> Linear | TiledLinear | NarrowLinear:
        tiles = self.tiles.get(self.prefix + name)
        if tiles is not None:
            return TiledLinear(outputs, tiles, bias=bias)
        return self._xla(self._quant(name), inputs, outputs, bias=bias, fine=fine)

    def exact(self, name: str, inputs: Dims, outputs: Dims, *, bias: bool) -> ExactLinear | TiledLinear:
        """A map that is small and decides much: never narrowed, and computed in float32."""
        tiles = self.tiles.get(self.prefix + name)
        return (
            TiledLinear(outputs, tiles, bias=bias)
            if tiles is not None
            else ExactLinear(inputs, outputs, bias=bias, devices=self.devices)
        )

    def experts(
        self, name: str, experts: Experts, activation: Activation, width: int, size: int
    ) -> ExpertsXla | ExpertsSpread | ExpertsNative:
        """A layer's experts, whose parameters are `name`.gate_up and .down: embeddings of `width`, `size` of each expert's
        own width on a device.
        """
        up, down = (self.tiles.get(f"{self.prefix}{name}.{which}") for which in ("gate_up", "down"))
        if up is not None and down is not None:
            return ExpertsNative(experts, activation, up, down)
        quants = self._quant(f"{name}.gate_up"), self._quant(f"{name}.down")
        make = partial(self._stacked, quants)
        if experts.count == 1:  # what every token goes through is split like an MLP
            return make(experts, activation, width, devices=(self.devices, "mlp"), size=size)
        if self.expert_parallel == 1:
            return make(experts, activation, width, devices=(self.devices, "expert_mlp"), size=size)
        parts = self.expert_parallel
        whole = make(experts, activation, width, devices=(self.devices // parts, "expert_mlp"), size=size)
        few = partial(make, evolve(experts, count=experts.count // parts), activation, width)
        return ExpertsSpread(whole, partial(few, devices=(1, "expert_mlp"), size=size, among=parts))

    def _quant(self, name: str) -> str:
        """What the matrix of this path is kept as."""
        if self.quant == "stored":
            return "mxfp4" if self.prefix + name in self.coded else "none"
        return self.quant

    def _stacked(
        self,
        quants: tuple[str, str],
        experts: Experts,
        activation: Activation,
        width: int,
        *,
        devices: tuple[int, str],
        size: int,
        among: int = 1,
    ) -> ExpertsXla:
        """Over so many `devices`, which have a part of each."""
        stack, embed = (experts.count, None if devices[1] == "mlp" else "experts"), ((width, "embed"),)
        make = partial(self._xla, bias=experts.bias, stack=(stack,), devices=devices[0])
        gate_up = make(quants[0], embed, (devices, (activation.halves, None), (size, None)))
        down = make(quants[1], (devices, (size, None)), embed, fine=True)
        return ExpertsXla(experts, activation, gate_up, down, among)

    def _xla(
        self,
        quant: str,
        inputs: Dims,
        outputs: Dims,
        *,
        bias: bool,
        fine: bool = False,
        stack: Dims = (),
        devices: int | None = None,
    ) -> Linear | NarrowLinear:
        around: dict[str, Any] = {"dtype": self.dtype, "bias": bias, "devices": devices or self.devices, "stack": stack}
        if quant in (*NARROW, "mxfp4"):
            return NarrowLinear(inputs, outputs, quant=quant, **around)
        return Linear(inputs, outputs, quant=quant, fine=fine, **around)

    def per_head(self, name: str, heads: int, inputs: int, outputs: int) -> HeadMaps | TiledHeadMaps:
        """A matrix for each of `heads`, side by side: [T, K, G, in] -> [T, K, G, out]."""
        tiles = self.tiles.get(self.prefix + name)
        if tiles is not None:
            return TiledHeadMaps(tiles)
        return HeadMaps(heads, inputs, outputs, dtype=self.dtype)

    def table(self, name: str, vocab: int, width: int) -> VocabTable | TiledTable | Fp8Table:
        """The matrix that tokens are looked up in, and that logits are computed with."""
        tiles = self.tiles.get(self.prefix + name)
        if tiles is not None:
            return TiledTable(tiles)
        if self.quant == "fp8":
            return Fp8Table(vocab, width, dtype=self.dtype, devices=self.devices)
        return VocabTable(vocab, width, quant=table_quant(self.quant), dtype=self.dtype, devices=self.devices)


def table_quant(quant: str) -> str:
    """What the table of a model in `quant` is kept as: not below 8 bits, since every token goes through it twice."""
    return {"int4": "int8", "stored": "none"}.get(quant, quant)


def linear_store(inputs: int, quant: str) -> Store:
    """What XLA's linear maps with `inputs` in-dimensions are kept as; with "stored" it is still to be found out."""
    if quant == "stored":
        return undecided
    return partial(store_narrow, inputs=inputs, quant=quant) if quant in NARROW else store_kernel(inputs, quant)


def table_store(quant: str) -> Store:
    """What XLA's tables are kept as."""
    if quant == "fp8":
        return linear_store(1, quant)
    return store_int8(1) if table_quant(quant) == "int8" else store_as("kernel")


def undecided(_: Array | Blocks) -> dict[str, Array]:
    """The `store` of a rule that `tile` or `keep` has still to give one."""
    raise AssertionError("a rule that is still undecided")


def keep(
    rules: Sequence[Rule | Ignore], stored: Mapping[str, Storage] | None
) -> tuple[tuple[Rule | Ignore, ...], frozenset[str]]:
    """The rules with stores for XLA in place of `undecided`, and the paths of those matrices that stay MXFP4, as the
    checkpoint has them. `stored`: see `tile`.
    """
    made: list[Rule | Ignore] = list(rules)
    coded = set()
    for place, rule in enumerate(rules):
        if not isinstance(rule, Rule) or rule.store is not undecided:
            continue
        as_stored = evolve(rule, dtype=None)
        if as_stored.storage(stored or {}) == MXFP4 and fills_groups(rule.shape[len(rule.shape) - rule.inputs :]):
            coded.add(rule.path)
            made[place] = evolve(as_stored, store=partial(store_mxfp4, shape=rule.shape, inputs=rule.inputs))
        else:
            store = store_kernel(rule.inputs, "none")
            made[place] = evolve(rule, store=store_each(store) if rule.stacked else store)
    return tuple(made), frozenset(coded)


def tile(
    rules: Sequence[Rule | Ignore],
    stored: Mapping[str, Storage] | None,
    quant: str,
    *,
    gated: Sequence[str] = (),
    tables: Sequence[str] = (),
    exact: Sequence[str] = (),
) -> tuple[tuple[Rule | Ignore, ...], dict[str, Tiles]]:
    """The rules with stores for tiles in place of `undecided`, and the tiles by path.

    `stored` says what the checkpoint's tensors are stored as; None: float32. Paths that end with one of `gated` are a gate
    over its other half; `tables` are looked up in as well, and are not narrowed below 8 bits: every token goes through
    them twice. Paths that end with one of `exact` are not narrowed at all.
    """
    tiles: dict[str, Tiles] = {}
    made: list[Rule | Ignore] = list(rules)
    for place, rule in enumerate(rules):
        if isinstance(rule, Rule) and rule.store is undecided:
            scheme = table_quant(quant) if rule.path in tables else quant
            scheme = "stored" if rule.path.endswith(tuple(exact)) else scheme
            tiles[rule.path] = _plan(rule, stored, scheme, gated=rule.path.endswith(tuple(gated)))
            made[place] = evolve(rule, store=_store(tiles[rule.path], scheme))
    return tuple(made), tiles


_SCHEMES = {"int8": (INT8, int8_by_group), "int4": (INT4, int4_by_group)}


def _plan(rule: Rule, stored: Mapping[str, Storage] | None, scheme: str, *, gated: bool) -> Tiles:
    first, outputs = int(rule.stacked), len(rule.shape) - rule.inputs
    storage = _SCHEMES[scheme][0] if scheme in _SCHEMES else FLOAT32 if stored is None else rule.storage(stored)
    storage = storage.integers  # of which the kernels' codes are
    rows, columns = prod(rule.shape[first:outputs]), prod(rule.shape[outputs:])
    return Tiles.plan(rows, columns, storage, gated=gated, stack=prod(rule.shape[:first]))


def _store(tiles: Tiles, scheme: str) -> Store:
    def store(whole: Array | Blocks) -> dict[str, Array]:
        if scheme in _SCHEMES and tiles.storage.coded:
            flat = whole if isinstance(whole, Blocks) else whole.reshape(-1, tiles.columns)
            return {"matrix": tiles.pack(_SCHEMES[scheme][1](flat))}
        keeps = isinstance(whole, Blocks) and tiles.storage.coded
        return {"matrix": tiles.pack(to_storage(whole, tiles.storage) if keeps else whole)}

    return store
