"""A layer's experts as XLA computes them, sharded or not, in every format of its linear maps; knows arrays, no family.

Tokens are sorted by their experts and go through them in blocks of one size, one expert's weights at a time: shapes are
static, only the experts of the tokens at hand are read, and what a token gets does not depend on those beside it. Each device
has a part of every expert's width, so that all have the same to do, or some experts, of which it computes those of the tokens
at hand. Either way a layer costs one sum over the devices.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from models.dense.record import Activation, Experts
from models.linears_xla import Linear, NarrowLinear
from models.mixtures import ExpertMatrices, choosing, kernels_for
from models.nn import Live, RMSNorm
from models.routing import route
from models.sharding import BOTH, EXPERT, TENSOR, current_mesh, partition

MOST_ROWS = 64
"""Of a block: enough to be worth reading an expert's weights for."""

M = TypeVar("M", bound=nnx.Module)


class ExpertsXla(nnx.Module):
    """Both maps of every expert, stacked: gate_up [E, devices, 2, F of a device, D], down [E, D, devices, F]. `among`: of how
    many times as many experts they are.
    """

    def __init__(
        self,
        experts: Experts,
        activation: Activation,
        gate_up: Linear | NarrowLinear,
        down: Linear | NarrowLinear,
        among: int = 1,
    ) -> None:
        self.experts, self.activation, self.among = experts, activation, among
        self.gate_up, self.down = gate_up, down

    def __call__(
        self,
        x: jax.Array,
        logits: jax.Array,
        residual: jax.Array | None,
        *,
        correction: jax.Array | None = None,
        scales: jax.Array | None = None,
        norm: RMSNorm | None = None,
        live: Live = None,  # noqa: ARG002
    ) -> jax.Array:
        """x [T, D], float32 logits [T, E] of the router, residual [T, D] -> the residual and, of each token's experts, the
        sum of what they make of norm(x), by their shares, times `scales` [E].
        """
        mixture = self._mixture(norm) if choosing() else None
        kernels = None if mixture is None else kernels_for(mixture, self.experts.active, x.shape[0])
        if kernels is not None and mixture is not None:
            chosen, shares = kernels.route(self.experts, logits, correction, scales)
            return kernels.through(x, chosen, shares, mixture, residual)
        chosen, shares = route(self.experts, logits, correction, scales)
        total = self.summed(x if norm is None else norm(x), chosen, shares)
        total = (total + self.biases(chosen, shares)).astype(x.dtype)
        return total if residual is None else residual + total

    def summed(self, x: jax.Array, chosen: jax.Array, shares: jax.Array) -> jax.Array:
        """What the `chosen` experts [T, active] make of x [T, D], by their shares and without biases, float32 [T, D]."""
        inward = self.experts.share_inputs
        outputs = self._outputs(x, chosen, shares if inward else None)
        outputs = outputs if inward else outputs * shares[None, :, :, None]
        return outputs.sum(axis=2).sum(axis=0)  # over devices last: one exchange

    def biases(self, chosen: jax.Array, shares: jax.Array) -> jax.Array | float:
        """What their biases add, float32 [T, D]."""
        if self.down.bias is None:
            return 0.0
        bias = jnp.take(self.down.bias[...].astype(jnp.float32), chosen, axis=0)
        shares = (shares != 0).astype(shares.dtype) if self.experts.share_inputs else shares
        return (bias * shares[:, :, None]).sum(axis=1)

    def _mixture(self, norm: RMSNorm | None) -> ExpertMatrices | None:
        """As kernels take it; None where they cannot."""
        gate_up, down = self.gate_up.stack(), self.down.stack()
        if gate_up is None or down is None or self.experts.share_inputs:
            return None
        biases = [
            None if maps.bias is None else maps.bias[...].reshape(self.experts.count, -1)
            for maps in (self.gate_up, self.down)
        ]
        return ExpertMatrices(gate_up, down, self.activation, None if norm is None else norm.for_kernel, *biases)

    def _outputs(self, x: jax.Array, chosen: jax.Array, shares: jax.Array | None) -> jax.Array:
        """x [T, D], chosen [T, active] -> float32 [devices, T, active, D], what each device makes of each of them, times
        shares [T, active] as they go in."""
        if self.experts.count == self.among == 1:
            return self._through(jnp.zeros((), jnp.int32), x if shares is None else x * shares.astype(x.dtype))[
                :, :, None
            ]
        tokens, active = chosen.shape
        pairs, size = tokens * active, block_rows(tokens * active, self.experts.count * self.among)
        order = jnp.argsort(chosen.reshape(-1), stable=True).astype(jnp.int32)
        counts = jnp.zeros(self.experts.count, jnp.int32).at[chosen.reshape(-1)].add(1, mode="drop")
        begin, blocks = jnp.cumsum(counts) - counts, -(-counts // size)
        until = jnp.cumsum(blocks)
        rows = jnp.pad(order // active, (0, size))  # a block may reach over the last pair
        by = None if shares is None else jnp.pad(shares.reshape(-1)[order], (0, size))

        def block(number: jax.Array, done: jax.Array) -> jax.Array:
            """What reaches over an expert's pairs is overwritten by the next expert's block."""
            expert = jnp.searchsorted(until, number, side="right")
            at = begin[expert] + (number - until[expert] + blocks[expert]) * size
            given = x[lax.dynamic_slice(rows, (at,), (size,))]
            if by is not None:
                given = given * lax.dynamic_slice(by, (at,), (size,))[:, None].astype(given.dtype)
            made = self._through(expert, given)
            return lax.dynamic_update_slice(done, made, (0, at, 0))

        devices = self.down.parts
        done: jax.Array = lax.fori_loop(
            0, until[-1], block, jnp.zeros((devices, pairs + size, x.shape[1]), jnp.float32)
        )
        place = jnp.zeros(pairs, jnp.int32).at[order].set(jnp.arange(pairs, dtype=jnp.int32))
        return done[:, place].reshape(devices, tokens, active, -1)

    def _through(self, expert: jax.Array, rows: jax.Array) -> jax.Array:
        """rows [R, D] through one expert: float32 [devices, R, D]."""
        gated = _pick(self.gate_up, expert).gated(rows, self.activation)
        return _pick(self.down, expert).apart(gated)


class ExpertsSpread(nnx.Module):
    """The same over devices of which each has whole experts, or the same part of them as others have. Tokens are on all of
    them: each computes what its experts make of the tokens, and the sum over the devices is that of `ExpertsXla`.

    `few` makes the experts of one device, without values.
    """

    def __init__(self, whole: ExpertsXla, few: Callable[[], ExpertsXla]) -> None:
        self.experts, self.gate_up, self.down = whole.experts, whole.gate_up, whole.down
        self.few = few

    def __call__(
        self,
        x: jax.Array,
        logits: jax.Array,
        residual: jax.Array | None,
        *,
        correction: jax.Array | None = None,
        scales: jax.Array | None = None,
        norm: RMSNorm | None = None,
        live: Live = None,  # noqa: ARG002
    ) -> jax.Array:
        """As `ExpertsXla`."""
        chosen, shares = route(self.experts, logits, correction, scales)
        graph, abstract = nnx.split(self.few())
        state = nnx.split(self)[1]
        axes = [variable.axes for _, variable in nnx.to_flat_state(state)]

        def local(x: jax.Array, chosen: jax.Array, shares: jax.Array, *leaves: jax.Array) -> jax.Array:
            one: ExpertsXla = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(abstract), leaves))
            return _of_a_device(one, x, chosen, shares)

        whole = partition(())
        specs = (whole, whole, whole, *map(partition, axes))
        spread: Any = jax.shard_map(local, mesh=current_mesh(), in_specs=specs, out_specs=whole, check_vma=False)
        given: tuple[jax.Array, ...] = (x if norm is None else norm(x), chosen, shares, *jax.tree.leaves(state))
        total: jax.Array = spread(*given).astype(x.dtype)
        return total if residual is None else residual + total


def _of_a_device(experts: ExpertsXla, x: jax.Array, chosen: jax.Array, shares: jax.Array) -> jax.Array:
    """Within a device: the sum over all devices, float32 [T, D]."""
    each = experts.experts.count
    number = chosen - lax.axis_index(EXPERT) * each
    mine = (number >= 0) & (number < each)
    number, shares = jnp.where(mine, number, each), jnp.where(mine, shares, 0)
    total = experts.summed(x, number, shares)
    # Devices that have parts of the same experts all have their biases.
    biases = experts.biases(jnp.minimum(number, each - 1), jnp.where(lax.axis_index(TENSOR) == 0, shares, 0))
    added: jax.Array = lax.psum(total + biases, BOTH)
    return added


def block_rows(pairs: int, count: int) -> int:
    """Rows of a block: as many as an expert has on average, a power of two."""
    each = -(-pairs // count)
    return min(MOST_ROWS, 1 << (each - 1).bit_length())


def _pick(maps: M, number: jax.Array) -> M:
    """One map of a stack."""
    graph, state = nnx.split(maps)
    picked: M = nnx.merge(
        graph, jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, number, keepdims=False), state)
    )
    return picked
