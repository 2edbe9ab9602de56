"""A matrix as XLA's linear maps store it, and its product with rows as XLA computes that; knows arrays, no layers.

What stands around a product in a layer comes along, so that a kernel may compute all of it at once: `product` here is what
such a kernel is held against.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax

from models.dense.record import OAI_SLOPE, Activation
from models.native.ops import Norm
from models.nn import normed
from models.products import fp8_matmul, int4_matmul, int8_matmul, mxfp4_matmul
from models.rounding import INT4
from models.traced import Traced

Kind = Literal["float", "table", "exact", "int8", "fp8", "int4", "mxfp4"]

PACKED: tuple[Kind, ...] = ("int4", "mxfp4")
"""Two codes in a byte, in groups."""

Spread = Literal["outputs", "inputs"]
"""Which of a matrix's sides is divided among devices."""

GROUP = INT4.group
"""Weights of a group, of which byte i holds weights i and i + GROUP / 2."""


@frozen
class Shape:
    """Of a matrix: what decides which kernel is the best. `gated`: act(gate) * up of its halves is wanted."""

    kind: Kind
    outputs: int
    inputs: int
    gated: bool = False


@frozen
class Matrix:
    """[O, I] as stored: float [I, O]; a table of floats [O, I]; exact, float32 [I, O] and multiplied in float32; int8 or fp8
    [O, I] and scale float32 [O]; int4 bytes [O, I / 2], scale and offset float16 [O, I / 32]; mxfp4 the same bytes, and
    exponents of scales [O, I / 32]. Of a stack of many such each leaf begins with their number. On several `devices` it may
    be `spread`, or each has all of it."""

    kind: Kind
    leaves: tuple[jax.Array, ...]
    spread: Spread | None = None
    devices: int = 1

    def shape(self, *, gated: bool = False) -> Shape:
        """Of what one device has."""
        first, second = self.leaves[0].shape[-2:]
        outputs, inputs = (second, first) if self.kind in ("float", "exact") else (first, second)
        inputs *= 2 if self.kind in PACKED else 1
        outputs //= self.devices if self.spread == "outputs" else 1
        inputs //= self.devices if self.spread == "inputs" else 1
        return Shape(self.kind, outputs, inputs, gated)


@frozen
class Around:
    """What is computed along: the product with norm(x), `bias` [O] added, act(gate) * up of its halves, `residual` added."""

    norm: Norm | None = None
    bias: jax.Array | None = None
    activation: Activation | None = None
    residual: jax.Array | None = None


class Kernel(Protocol):
    """`product` by other means."""

    def __call__(self, x: jax.Array, matrix: Matrix, around: Around, *, dtype: Any = None) -> jax.Array: ...


Choose = Callable[[Shape, int], Kernel | None]
"""The kernel for so many rows and a matrix; None for what XLA makes of it."""

_CHOOSE = Traced[Choose]("kernels of products")


def computing(choose: Choose | None) -> AbstractContextManager[None]:
    """What is traced in here computes its products with kernels that `choose` names; None: with XLA."""
    return _CHOOSE.within(choose)


def choosing() -> bool:
    """Whether kernels may compute products of what is being traced."""
    return _CHOOSE.get() is not None


def kernel_for(matrix: Matrix | None, rows: int, *, gated: bool = False) -> Kernel | None:
    """The kernel for the product of `matrix` with so many rows; None where XLA computes it."""
    choose = _CHOOSE.get()
    return None if choose is None or matrix is None else choose(matrix.shape(gated=gated), rows)


def product(x: jax.Array, matrix: Matrix, around: Around, *, dtype: Any = None) -> jax.Array:
    """x [T, I] -> [T, O], or [T, O / 2] where gated, in `dtype` or that of x: as XLA computes it."""
    dtype = dtype or x.dtype
    if around.norm is not None:
        x = normed(x, around.norm)
    y = _multiply(x, matrix).astype(dtype)
    if around.bias is not None:
        y = y + around.bias[None].astype(dtype)
    if around.activation is not None:
        y = activate(around.activation, *jnp.split(y, 2, axis=1))
    return y if around.residual is None else around.residual + y


def activate(activation: Activation, gate: jax.Array, up: jax.Array) -> jax.Array:
    """act(gate) * up, of any shape. Where nothing is gated, both are up."""
    if activation.limit is not None:
        gate, up = jnp.minimum(gate, activation.limit), jnp.clip(up, -activation.limit, activation.limit)
    match activation.kind:
        case "silu":
            return jax.nn.silu(gate) * up
        case "gelu":
            return jax.nn.gelu(gate, approximate=False) * up
        case "gelu_tanh":
            return jax.nn.gelu(gate, approximate=True) * up
        case "swiglu_oai":
            return gate * jax.nn.sigmoid(OAI_SLOPE * gate) * (up + 1)
        case "relu2":
            return jnp.square(jax.nn.relu(up))


def _multiply(x: jax.Array, matrix: Matrix) -> jax.Array:
    match matrix.kind:
        case "float":
            return jnp.matmul(x, *matrix.leaves, preferred_element_type=jnp.float32)
        case "exact":
            return jnp.matmul(x.astype(jnp.float32), *matrix.leaves)
        case "table":
            return lax.dot_general(x, matrix.leaves[0], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        case kind:
            return _OF_CODES[kind](x, *matrix.leaves)


_OF_CODES: Mapping[Kind, Callable[..., jax.Array]] = {
    "int8": int8_matmul,
    "fp8": partial(fp8_matmul, native=False),
    "int4": int4_matmul,
    "mxfp4": mxfp4_matmul,
}
