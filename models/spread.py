"""Products, experts and states that lie on several devices, each by the kernels of one; knows arrays and a mesh, no layers.

XLA cannot split what it does not know. So each device computes its own outputs; or what its own inputs add to all of them,
of which there is one sum over the devices. States know nothing of other heads', so each device goes through those of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from attrs import evolve
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from models.dense.record import Experts
from models.matrices import Around, Kernel, Matrix
from models.mixtures import ExpertKernels, ExpertMatrices
from models.native.ops import Norm
from models.native.recurrent import StateRows
from models.sharding import TENSOR

ByHead = Mapping[str, tuple[Any, int]]
"""Arrays by name, and which of their axes the heads are on; None, or a tuple of arrays that are alike, may stand for one."""

WHOLE, FIRST, LAST = PartitionSpec(), PartitionSpec(TENSOR), PartitionSpec(None, TENSOR)


def over(mesh: Mesh, kernel: Kernel) -> Kernel:
    """`kernel` on every device of `mesh` for its own part of a matrix, as `Matrix.spread` says."""

    def product(x: jax.Array, matrix: Matrix, around: Around, *, dtype: Any = None) -> jax.Array:
        summed, apart = matrix.spread == "inputs", matrix.spread == "outputs"
        within = evolve(around, bias=None, residual=None) if summed else around

        def local(x: jax.Array, leaves: Any, weight: Any, bias: Any, residual: Any) -> jax.Array:
            own = Around(_with(within.norm, weight), bias, within.activation, residual)
            made = kernel(x, Matrix(matrix.kind, leaves), own, dtype=dtype)
            return lax.psum(made, TENSOR) if summed else made

        specs = (LAST if summed else WHOLE, leaf_specs(matrix), WHOLE, FIRST if apart else WHOLE, WHOLE)
        on_each = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=LAST if apart else WHOLE, check_vma=False)
        made: jax.Array = on_each(x, matrix.leaves, _weight(within.norm), within.bias, within.residual)
        if summed and around.bias is not None:
            made = made + around.bias[None].astype(made.dtype)
        return around.residual + made if summed and around.residual is not None else made

    return product


def experts_over(mesh: Mesh, kernels: ExpertKernels) -> ExpertKernels:
    """`kernels` on every device of `mesh` for its own part of every expert's width."""

    def route(
        experts: Experts, logits: jax.Array, correction: jax.Array | None = None, scales: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        def local(*given: Any) -> tuple[jax.Array, jax.Array]:
            return kernels.route(experts, *given)

        on_each = jax.shard_map(local, mesh=mesh, in_specs=WHOLE, out_specs=WHOLE, check_vma=False)
        found: tuple[jax.Array, jax.Array] = on_each(logits, correction, scales)
        return found

    def through(
        x: jax.Array, chosen: jax.Array, shares: jax.Array, mixture: ExpertMatrices, residual: jax.Array | None = None
    ) -> jax.Array:
        maps = (mixture.gate_up, mixture.down)

        def local(
            routed: tuple[jax.Array, jax.Array, jax.Array], leaves: Any, weight: Any, up_bias: Any, down_bias: Any
        ) -> jax.Array:
            if down_bias is not None:  # one device alone adds what is added once
                down_bias = down_bias * (lax.axis_index(TENSOR) == 0).astype(down_bias.dtype)
            gate_up, down = (Matrix(one.kind, of) for one, of in zip(maps, leaves, strict=True))
            norm = _with(mixture.norm, weight)
            own = ExpertMatrices(gate_up, down, mixture.activation, norm, up_bias, down_bias)
            made: jax.Array = lax.psum(kernels.through(*routed, own), TENSOR)
            return made

        specs = (WHOLE, tuple(leaf_specs(one, stack=True) for one in maps), WHOLE, LAST, WHOLE)
        on_each = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=WHOLE, check_vma=False)
        leaves, weight = (mixture.gate_up.leaves, mixture.down.leaves), _weight(mixture.norm)
        made: jax.Array = on_each((x, chosen, shares), leaves, weight, mixture.up_bias, mixture.down_bias)
        return made if residual is None else residual + made

    return ExpertKernels(route, through)


def states_over(
    mesh: Mesh,
    kernel: Callable[[Mapping[str, Any], tuple[jax.Array, ...], StateRows], tuple[jax.Array, tuple[jax.Array, ...]]],
    given: ByHead,
    cache: Sequence[tuple[jax.Array, int]],
    rows: StateRows,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """`kernel` on every device of `mesh` for its own heads of what is `given` and of `cache`, each with the axis that they are
    on: what tokens read, by heads [T, K, ...], and the cache.
    """

    def local(given: Any, cache: Any, told: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return kernel(given, cache, evolve(rows, **told))

    told = {name: getattr(rows, name) for name in ("slot", "start", "count", "load", "save")}
    kept = tuple(_of_heads(axis) for _, axis in cache)
    specs = ({name: _of_heads(axis) for name, (_, axis) in given.items()}, kept, WHOLE)
    on_each = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(_of_heads(1), kept), check_vma=False)
    arrays = {name: array for name, (array, _) in given.items()}
    made: tuple[jax.Array, tuple[jax.Array, ...]] = on_each(arrays, tuple(leaf for leaf, _ in cache), told)
    return made


def _of_heads(axis: int) -> PartitionSpec:
    return PartitionSpec(*(None,) * axis, TENSOR)


def leaf_specs(matrix: Matrix, *, stack: bool = False) -> tuple[PartitionSpec, ...]:
    """Where the leaves of a matrix lie, or of a stack, which begin with the number of one."""
    if matrix.spread is None:
        return (WHOLE,) * len(matrix.leaves)
    outputs = matrix.spread == "outputs"
    codes = LAST if outputs == (matrix.kind in ("float", "exact")) else FIRST
    scale = FIRST if outputs else WHOLE
    found = (codes, *((scale,) if matrix.kind in ("int8", "fp8") else (codes,) * (len(matrix.leaves) - 1)))
    return tuple(PartitionSpec(None, *spec) for spec in found) if stack else found


def _weight(norm: Norm | None) -> jax.Array | None:
    return None if norm is None else norm.weight


def _with(norm: Norm | None, weight: jax.Array) -> Norm | None:
    return None if norm is None else evolve(norm, weight=weight)
