"""Linear maps and tables that XLA computes, sharded or not, in every format of theirs; knows layers and arrays, no family.

The table of an int4 model stays int8: every token goes through it twice.
"""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import target
from models.adapters import LowRank
from models.dense.record import Activation
from models.errors import ModelError
from models.matrices import Around, Matrix, Spread, activate, choosing, kernel_for, product
from models.nn import Dims, Live, RMSNorm, parameter, sizes
from models.products import (
    LARGEST_E8M0,
    by_parts,
    fp8_matmul,
    in_parts,
    int4_matmul,
    int8_matmul,
    multiplies_fp8,
    mxfp4_matmul,
)
from models.rounding import INT4, fp8_by_channel, int4_by_group, pack_int4
from models.sharding import sharded
from models.storage import MXFP4, Array, Blocks, exponents_of

NARROW = ("int4", "fp8")
"""Values of `quant` that are these."""

Leaves = Mapping[str, tuple[Dims, Any]]
"""Dimensions and dtype by name."""


class Map(nnx.Module):
    """What every linear map does with its product. A kernel may compute it, with what stands around it, where one is chosen.
    `low_rank`: the adapters beside it, see `models.adapters`.
    """

    low_rank: LowRank | None = None

    outputs: tuple[int, ...]
    bias: nnx.Param[jax.Array] | None

    def __call__(self, x: jax.Array, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:  # noqa: ARG002
        """x [T, *in] -> [T, *out] in the dtype of x; the product with norm(x)."""
        made = self._at_once(x, norm)
        if made is not None:
            return made.reshape(x.shape[0], *self.outputs)
        x = x if norm is None else norm(x)
        y = self._product(x)
        if self.low_rank is not None:
            y = y + self.low_rank(x.reshape(x.shape[0], -1)).reshape(y.shape)
        return y if self.bias is None else y + self.bias[...][None]

    def add(self, x: jax.Array, residual: jax.Array, live: Live = None, norm: RMSNorm | None = None) -> jax.Array:
        """x [T, *in], residual [T, *out] -> the residual and norm(product), [T, *out]."""
        flat = residual.reshape(x.shape[0], -1)
        made = self._at_once(x, None, residual=flat) if norm is None else None
        if made is not None:
            return made.reshape(residual.shape)
        y = self(x, None, live)
        return residual + (y if norm is None else norm(y, live))

    def gated(self, x: jax.Array, activation: Activation, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:
        """x [T, *in] -> act(gate) * up of the product with norm(x), which is [T, devices, 2, F], or 1 of up alone:
        [T, devices, F].
        """
        # Kernels that finish a product know two halves.
        made = self._at_once(x, norm, activation=activation) if activation.halves == 2 else None
        if made is not None:
            return made.reshape(x.shape[0], self.outputs[0], -1)
        both = self(x, norm, live)
        return activate(activation, both[:, :, 0], both[:, :, -1])

    @abstractmethod
    def _product(self, x: jax.Array) -> jax.Array:
        """x [T, *in] -> [T, *out] in the dtype of x, without the bias."""

    @abstractmethod
    def _matrix(self) -> Matrix | None:
        """As kernels take it; None where it is one of a stack."""

    def _at_once(
        self,
        x: jax.Array,
        norm: RMSNorm | None,
        *,
        activation: Activation | None = None,
        residual: jax.Array | None = None,
        dtype: Any = None,
    ) -> jax.Array | None:
        """The product and what stands around it by the kernel that was chosen; None where XLA computes it."""
        matrix = self._matrix() if choosing() and self.low_rank is None else None
        kernel = kernel_for(matrix, x.shape[0], gated=activation is not None)
        if kernel is None or matrix is None:
            return None
        bias = None if self.bias is None else self.bias[...].reshape(-1)
        around = Around(None if norm is None else norm.for_kernel, bias, activation, residual)
        return kernel(x.reshape(x.shape[0], -1), matrix, around, dtype=dtype)


class Linear(Map):
    """[T, *in] -> [T, *out]. Float kernels are [*in, *out] (XLA:CPU reads them fastest so), int8 kernels [*out, *in].

    Only the first of the in- and of the out-dimensions may be sharded: the product runs on flattened ones, because
    XLA:CPU would transpose a kernel of more dimensions in every call. With a `stack` its leaves are those of many such maps,
    of which `models.experts_xla` picks one.
    """

    def __init__(
        self,
        inputs: Dims,
        outputs: Dims,
        *,
        quant: str,
        dtype: Any,
        bias: bool = False,
        fine: bool = False,
        devices: int = 1,
        stack: Dims = (),
    ) -> None:
        assert not any(axis for _, axis in inputs[1:] + outputs[1:] if axis is not None), (
            "an inner dimension is sharded"
        )
        int8 = quant == "int8"
        self.outputs = sizes(outputs)
        self.fine = fine
        self.stacked, self.devices, self.spread = bool(stack), devices, _spread(inputs, outputs, devices)
        self.parts = parts(inputs, devices)
        kernel = parameter(stack + outputs + inputs, jnp.int8) if int8 else parameter(stack + inputs + outputs, dtype)
        self.kernel = kernel
        self.scale = parameter(stack + outputs, jnp.float32) if int8 else None
        self.bias = parameter(stack + outputs, dtype) if bias else None

    def _product(self, x: jax.Array) -> jax.Array:
        flat = x.reshape(x.shape[0], -1)
        width = flat.shape[1]
        if self.scale is None:
            y = flat @ self.kernel[...].reshape(width, -1)
        else:
            kernel = self.kernel[...].reshape(-1, width)
            product = partial(int8_matmul, scale=self.scale[...].reshape(-1), fine=self.fine)
            y = by_parts(product, self.parts, flat, kernel).astype(x.dtype)
        return y.reshape(x.shape[0], *self.outputs)

    def _matrix(self) -> Matrix | None:
        if self.stacked:
            return None
        outputs, around = prod(self.outputs), (self.spread, self.devices)
        if self.scale is None:
            return Matrix("float", (self.kernel[...].reshape(-1, outputs),), *around)
        return Matrix("int8", (self.kernel[...].reshape(outputs, -1), self.scale[...].reshape(-1)), *around)

    def stack(self) -> Matrix | None:
        """All maps of a stack as kernels take them; None where they cannot."""
        kernel, outputs, around = self.kernel[...], prod(self.outputs), (self.spread, self.devices)
        if self.scale is None:
            return Matrix("float", (kernel.reshape(kernel.shape[0], -1, outputs),), *around)
        leaves = (kernel.reshape(kernel.shape[0], outputs, -1), self.scale[...].reshape(-1, outputs))
        return Matrix("int8", leaves, *around)

    def apart(self, x: jax.Array) -> jax.Array:
        """x [T, *in] -> float32 [parts, T, *out flat]: what each device has to add to the product, without the bias."""
        flat = x.reshape(x.shape[0], -1)
        if self.scale is None:
            cut = flat.reshape(x.shape[0], self.parts, -1)
            kernel = self.kernel[...].reshape(self.parts, cut.shape[2], -1)
            return jnp.einsum("tpi,pio->pto", cut, kernel, preferred_element_type=jnp.float32)
        product = partial(int8_matmul, scale=self.scale[...].reshape(-1), fine=self.fine)
        return in_parts(product, self.parts, flat, self.kernel[...].reshape(-1, flat.shape[1]))


class ExactLinear(Linear):
    """The same in float32, whatever x and the model are in."""

    def __init__(self, inputs: Dims, outputs: Dims, *, bias: bool, devices: int = 1) -> None:
        super().__init__(inputs, outputs, quant="none", dtype=jnp.float32, bias=bias, devices=devices)

    def _matrix(self) -> Matrix:
        leaves = (self.kernel[...].reshape(-1, prod(self.outputs)),)
        return Matrix("exact", leaves, self.spread, self.devices)

    def __call__(self, x: jax.Array, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:
        """x [T, *in] -> float32 [T, *out]; the product with norm(x)."""
        made = self._at_once(x, norm, dtype=jnp.float32)
        if made is not None:
            return made.reshape(x.shape[0], *self.outputs)
        return super().__call__((x if norm is None else norm(x)).astype(jnp.float32), None, live)


class NarrowLinear(Map):
    """[T, *in] -> [T, *out], as `Linear`."""

    def __init__(
        self,
        inputs: Dims,
        outputs: Dims,
        *,
        quant: str,
        dtype: Any,
        bias: bool = False,
        devices: int = 1,
        stack: Dims = (),
    ) -> None:
        self.quant = quant
        self.stacked, self.devices, self.spread = bool(stack), devices, _spread(inputs, outputs, devices)
        self.parts = parts(inputs, devices)
        self.inputs, self.outputs = (tuple(size for size, _ in dims) for dims in (inputs, outputs))
        leaves = {name: parameter(stack + dims, kind) for name, (dims, kind) in _leaves(quant, inputs, outputs).items()}
        self.kernel, self.scale, self.offset = leaves["kernel"], leaves["scale"], leaves.get("offset")
        self.bias = parameter(stack + outputs, dtype) if bias else None

    def _product(self, x: jax.Array) -> jax.Array:
        flat = x.reshape(x.shape[0], -1)
        return by_parts(*self._taken(flat)).astype(x.dtype).reshape(x.shape[0], *self.outputs)

    def _matrix(self) -> Matrix | None:
        outputs, within = prod(self.outputs), _split(self.inputs)[1]
        if self.stacked or (self.quant == "int4" and within % INT4.group):
            return None
        leaves = (self.kernel[...].reshape(outputs, -1), self.scale[...].reshape(outputs, -1))
        around = (self.spread, self.devices)
        if self.offset is not None:
            return Matrix("int4", (*leaves, self.offset[...].reshape(outputs, -1)), *around)
        if self.quant == "mxfp4":
            return Matrix("mxfp4", leaves, *around)
        return Matrix("fp8", (leaves[0], leaves[1][:, 0]), *around)

    def stack(self) -> Matrix | None:
        """As `Linear.stack`."""
        outputs, within = prod(self.outputs), _split(self.inputs)[1]
        if self.quant == "int4" and within % INT4.group:
            return None
        around = (self.spread, self.devices)
        leaves = [leaf[...].reshape(leaf.shape[0], outputs, -1) for leaf in (self.kernel, self.scale)]
        if self.offset is not None:
            return Matrix("int4", (*leaves, self.offset[...].reshape(*leaves[1].shape)), *around)
        if self.quant == "mxfp4":
            return Matrix("mxfp4", tuple(leaves), *around)
        return Matrix("fp8", (leaves[0], leaves[1][:, :, 0]), *around)

    def apart(self, x: jax.Array) -> jax.Array:
        """As `Linear.apart`."""
        return in_parts(*self._taken(x.reshape(x.shape[0], -1)))

    def _taken(self, x: jax.Array) -> tuple[Any, ...]:
        """The product, its parts, and what it takes."""
        match self.quant:
            case "fp8":
                return self._fp8(x)
            case "mxfp4":
                outputs = prod(self.outputs)
                return (
                    mxfp4_matmul,
                    self.parts,
                    x,
                    *(leaf[...].reshape(outputs, -1) for leaf in (self.kernel, self.scale)),
                )
        return self._int4(x)

    def _fp8(self, x: jax.Array) -> tuple[Any, ...]:
        kernel = self.kernel[...].reshape(-1, x.shape[1])
        product = partial(fp8_matmul, scale=self.scale[...].reshape(-1), native=_native())
        return product, self.parts, x, kernel

    def _int4(self, x: jax.Array) -> tuple[Any, ...]:
        first, rest = _split(self.inputs)
        # A group that the weights do not fill meets zeros.
        padded = jnp.pad(x.reshape(-1, first, rest), ((0, 0), (0, 0), (0, -rest % INT4.group)))
        outputs = prod(self.outputs)
        assert self.offset is not None, self.quant
        kernel, scale, offset = (leaf[...].reshape(outputs, -1) for leaf in (self.kernel, self.scale, self.offset))
        return int4_matmul, self.parts, padded.reshape(x.shape[0], -1), kernel, scale, offset


class VocabTable(nnx.Module):
    """One row of D per token, [V, D] in every dtype: rows are looked up, and the product with all of them is logits."""

    def __init__(self, vocab: int, width: int, *, quant: str, dtype: Any, devices: int = 1) -> None:
        int8 = quant == "int8"
        self.dtype, self.devices = dtype, devices
        self.kernel = parameter(((vocab, "vocab"), (width, "embed")), jnp.int8 if int8 else dtype)
        self.scale = parameter(((vocab, "vocab"),), jnp.float32) if int8 else None

    def rows(self, tokens: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """tokens [T] int32 -> [T, D]."""
        rows = _looked_up(self.kernel[...], tokens)
        if self.scale is None:
            return rows
        scale = _looked_up(self.scale[...], tokens)
        return (rows.astype(jnp.float32) * scale[:, None]).astype(self.dtype)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """hidden [R, D] -> float32 [R, V]."""
        if self.scale is None:
            return _logits(hidden, Matrix("table", (self.kernel[...],), *_by_vocab(self.devices)))
        return _logits(hidden, Matrix("int8", (self.kernel[...], self.scale[...]), *_by_vocab(self.devices)))


class Fp8Table(nnx.Module):
    """One row of D per token, [V, D], as `VocabTable`."""

    def __init__(self, vocab: int, width: int, *, dtype: Any, devices: int = 1) -> None:
        self.dtype, self.devices = dtype, devices
        leaves = _leaves("fp8", ((width, "embed"),), ((vocab, "vocab"),))
        self.kernel, self.scale = parameter(*leaves["kernel"]), parameter(*leaves["scale"])

    def rows(self, tokens: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """tokens [T] int32 -> [T, D]."""
        rows, scale = (_looked_up(leaf[...], tokens) for leaf in (self.kernel, self.scale))
        return (rows.astype(jnp.float32) * scale[:, None]).astype(self.dtype)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """hidden [R, D] -> float32 [R, V]."""
        matrix = Matrix("fp8", (self.kernel[...], self.scale[...]), *_by_vocab(self.devices))
        kernel = kernel_for(matrix, hidden.shape[0])
        if kernel is not None:
            return kernel(hidden, matrix, Around(), dtype=jnp.float32)
        return fp8_matmul(hidden, *matrix.leaves, native=_native())


def _logits(hidden: jax.Array, matrix: Matrix) -> jax.Array:
    """float32 [R, V], by the kernel that was chosen or by XLA."""
    return (kernel_for(matrix, hidden.shape[0]) or product)(hidden, matrix, Around(), dtype=jnp.float32)


def _by_vocab(devices: int) -> tuple[Spread | None, int]:
    """How a table is spread."""
    return ("outputs" if devices > 1 else None), devices


def _looked_up(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """table [V, ...], tokens [T] -> its rows [T, ...].

    A single token is looked up twice. XLA makes a slice of a lookup of one row, and to slice a table that is sharded it would
    gather all of it on every device, in every step.
    """
    count = tokens.shape[0]
    rows = jnp.take(table, jnp.concatenate([tokens, tokens]) if count == 1 else tokens, axis=0)
    return rows[:count]


def parts(inputs: Dims, devices: int) -> int:
    """In how many parts, one per device, the in-dimensions of a map are: `devices`, or 1 where each has them whole."""
    return devices if sharded(inputs[0][1]) else 1


def _spread(inputs: Dims, outputs: Dims, devices: int) -> Spread | None:
    """Which side of a map is divided among devices."""
    if devices == 1 or not (sharded(inputs[0][1]) or sharded(outputs[0][1])):
        return None
    return "inputs" if sharded(inputs[0][1]) else "outputs"


def store_narrow(whole: Array, inputs: int, quant: str) -> dict[str, Array]:
    """The leaves of a matrix [*out, *in] with `inputs` in-dimensions."""
    if quant == "fp8":
        kernel, scale = fp8_by_channel(whole, inputs)
        return {"kernel": kernel, "scale": scale}
    outputs, within = whole.shape[: whole.ndim - inputs], whole.shape[whole.ndim - inputs :]
    first, rest = _split(within)
    blocks = int4_by_group(whole.reshape(-1, rest))
    codes = np.pad(blocks.codes, ((0, 0), (0, -rest % INT4.group)))
    assert blocks.offset is not None, blocks.storage
    leaves: dict[str, Array] = {
        "kernel": pack_int4(codes, INT4.group),
        "scale": blocks.scale.astype(np.float16),
        "offset": blocks.offset.astype(np.float16),
    }
    shape = outputs if inputs == 1 else (*outputs, first)
    return {name: leaf.reshape(*shape, -1) for name, leaf in leaves.items()}


def fills_groups(inputs: tuple[int, ...]) -> bool:
    """Whether codes of these in-dimensions may be kept as they are stored: no group reaches over what is sharded."""
    return _split(inputs)[1] % MXFP4.group == 0


def store_mxfp4(blocks: Blocks, shape: tuple[int, ...], inputs: int) -> dict[str, Array]:
    """The leaves of a matrix of `shape` [*out, *in] in MXFP4, or of a stack of them: codes as `pack_int4` has them, and the
    exponents of their scales as bytes, where 127 is 1. Raises ModelError for scales that nothing can be multiplied with.
    """
    outputs = shape[: len(shape) - inputs]
    before = outputs if inputs == 1 else (*outputs, shape[len(outputs)])
    kernel, exponents = pack_int4(blocks.codes, MXFP4.group), exponents_of(blocks.scale)
    largest = int(exponents.max())
    if largest > LARGEST_E8M0:
        raise ModelError(
            "a matrix in MXFP4", [f"a scale is 2^{largest - 127}, at most 2^{LARGEST_E8M0 - 127} is computed with"]
        )
    return {"kernel": kernel.reshape(*before, -1), "scale": exponents.reshape(*before, -1)}


def _leaves(quant: str, inputs: Dims, outputs: Dims) -> Leaves:
    if quant == "fp8":
        return {"kernel": (outputs + inputs, jnp.float8_e4m3fn), "scale": (outputs, jnp.float32)}
    assert len(inputs) > 1 or inputs[0][1] in (None, "embed"), "groups would be cut by the sharding"
    groups = -(-_split(tuple(size for size, _ in inputs))[1] // INT4.group)
    before = outputs if len(inputs) == 1 else (*outputs, inputs[0])
    if quant == "mxfp4":
        return {
            "kernel": ((*before, (groups * MXFP4.group // 2, None)), jnp.uint8),
            "scale": ((*before, (groups, None)), jnp.uint8),
        }
    return {
        "kernel": ((*before, (groups * INT4.group // 2, None)), jnp.uint8),
        "scale": ((*before, (groups, None)), jnp.float16),
        "offset": ((*before, (groups, None)), jnp.float16),
    }


def _split(inputs: tuple[int, ...]) -> tuple[int, int]:
    """What may be sharded of the in-dimensions, and all that lies within: groups never reach over a device's end."""
    return (1, inputs[0]) if len(inputs) == 1 else (inputs[0], prod(inputs[1:]))


def _native() -> bool:
    """Asked while tracing: only the process that computes looks for devices."""
    return multiplies_fp8(target.device())
