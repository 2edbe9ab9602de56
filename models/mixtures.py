"""The matrices of a layer's experts, and which kernels compute them where some are chosen; knows arrays, no layers.

`models.experts_xla` has their twin, and asks here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import jax
from attrs import frozen

from models.dense.record import Activation, Experts
from models.matrices import Matrix, Shape
from models.native.ops import Norm
from models.traced import Traced


@frozen
class MixtureShape:
    """What decides which kernels are the best: the shapes of one expert's matrices, and of how many experts how many are
    active."""

    gate_up: Shape
    down: Shape
    count: int
    active: int


@frozen
class ExpertMatrices:
    """Stacks of one matrix for each expert, [E, H * F, D] of gate and up or of up alone (H halves), and [E, D, F]; biases
    [E, H * F] and [E, D]. `norm` is that of x."""

    gate_up: Matrix
    down: Matrix
    activation: Activation
    norm: Norm | None = None
    up_bias: jax.Array | None = None
    down_bias: jax.Array | None = None

    def shape(self, active: int) -> MixtureShape:
        gated = self.activation.halves == 2
        count = self.gate_up.leaves[0].shape[0]
        return MixtureShape(self.gate_up.shape(gated=gated), self.down.shape(), count, active)


class RouteKernel(Protocol):
    """See `models.routing.route`."""

    def __call__(
        self, experts: Experts, logits: jax.Array, correction: jax.Array | None = None, scales: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]: ...


class ThroughKernel(Protocol):
    """x [T, D] through the experts chosen int32 [T, active] by their shares float32 [T, active] -> [T, D] in the dtype of x:
    the weighted sum, and the residual [T, D] if there is one."""

    def __call__(
        self,
        x: jax.Array,
        chosen: jax.Array,
        shares: jax.Array,
        mixture: ExpertMatrices,
        residual: jax.Array | None = None,
    ) -> jax.Array: ...


@frozen
class ExpertKernels:
    """Both parts of a mixture."""

    route: RouteKernel
    through: ThroughKernel


Choose = Callable[[MixtureShape, int], ExpertKernels | None]
"""The kernels for so many tokens and a mixture; None for what XLA makes of it."""

_CHOOSE = Traced[Choose]("kernels of mixtures")


def computing(choose: Choose | None) -> AbstractContextManager[None]:
    """What is traced in here computes its mixtures with kernels that `choose` names; None: with XLA."""
    return _CHOOSE.within(choose)


def choosing() -> bool:
    """Whether kernels may compute mixtures of what is being traced."""
    return _CHOOSE.get() is not None


def kernels_for(mixture: ExpertMatrices, active: int, tokens: int) -> ExpertKernels | None:
    """None where XLA computes it."""
    choose = _CHOOSE.get()
    return None if choose is None else choose(mixture.shape(active), tokens)
