"""Linear maps in int4 or fp8 that XLA computes, sharded or not: for GPUs; knows layers and arrays, no family and no file.

The embedding of an int4 model stays int8, which is `models.nn.VocabTable`: every token goes through it twice.
"""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.blocks import Array
from models.formats_xla import fp8_matmul, int4_matmul, multiplies_fp8, pack_int4, quantize_fp8
from models.nn import Dims, Live, RMSNorm, parameter, parts
from models.quant import by_parts
from models.quantize import INT4, quantize_int4

NARROW = ("int4", "fp8")
"""Values of `quant` that are these."""

Leaves = Mapping[str, tuple[Dims, Any]]
"""Dimensions and dtype by name."""


class NarrowLinear(nnx.Module):
    """[T, *in] -> [T, *out], as `models.nn.Linear`."""

    def __init__(
        self, inputs: Dims, outputs: Dims, *, quant: str, dtype: Any, bias: bool = False, devices: int = 1
    ) -> None:
        self.quant = quant
        self.parts = parts(inputs, devices)
        self.inputs, self.outputs = (tuple(size for size, _ in dims) for dims in (inputs, outputs))
        leaves = _leaves(quant, inputs, outputs)
        self.kernel, self.scale = parameter(*leaves["kernel"]), parameter(*leaves["scale"])
        self.offset = parameter(*leaves["offset"]) if quant == "int4" else None
        self.bias = parameter(outputs, dtype) if bias else None

    def __call__(self, x: jax.Array, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:  # noqa: ARG002
        """x [T, *in] -> [T, *out] in the dtype of x; the product with norm(x)."""
        x = x if norm is None else norm(x)
        flat = x.reshape(x.shape[0], -1)
        product = self._fp8(flat) if self.quant == "fp8" else self._int4(flat)
        y = product.astype(x.dtype).reshape(x.shape[0], *self.outputs)
        return y if self.bias is None else y + self.bias[...][None]

    def add(self, x: jax.Array, residual: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """x [T, *in], residual [T, *out] -> their sum after the product, [T, *out]."""
        return residual + self(x)

    def _fp8(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].reshape(-1, x.shape[1])
        product = partial(fp8_matmul, scale=self.scale[...].reshape(-1), native=_native())
        return by_parts(product, self.parts, x, kernel)

    def _int4(self, x: jax.Array) -> jax.Array:
        first, rest = _split(self.inputs)
        # A group that the weights do not fill meets zeros.
        padded = jnp.pad(x.reshape(-1, first, rest), ((0, 0), (0, 0), (0, -rest % INT4.group)))
        outputs = prod(self.outputs)
        assert self.offset is not None, self.quant
        kernel, scale, offset = (leaf[...].reshape(outputs, -1) for leaf in (self.kernel, self.scale, self.offset))
        return by_parts(int4_matmul, self.parts, padded.reshape(x.shape[0], -1), kernel, scale, offset)


class Fp8Table(nnx.Module):
    """One row of D per token, [V, D], as `models.nn.VocabTable`."""

    def __init__(self, vocab: int, width: int, *, dtype: Any) -> None:
        self.dtype = dtype
        leaves = _leaves("fp8", ((width, "embed"),), ((vocab, "vocab"),))
        self.kernel, self.scale = parameter(*leaves["kernel"]), parameter(*leaves["scale"])

    def rows(self, tokens: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """tokens [T] int32 -> [T, D]."""
        rows, scale = (jnp.take(leaf[...], tokens, axis=0) for leaf in (self.kernel, self.scale))
        return (rows.astype(jnp.float32) * scale[:, None]).astype(self.dtype)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """hidden [R, D] -> float32 [R, V]."""
        return fp8_matmul(hidden, self.kernel[...], self.scale[...], native=_native())


def store_narrow(whole: Array, inputs: int, quant: str) -> dict[str, Array]:
    """The leaves of a matrix [*out, *in] with `inputs` in-dimensions."""
    if quant == "fp8":
        kernel, scale = quantize_fp8(whole, inputs)
        return {"kernel": kernel, "scale": scale}
    outputs, within = whole.shape[: whole.ndim - inputs], whole.shape[whole.ndim - inputs :]
    first, rest = _split(within)
    blocks = quantize_int4(whole.reshape(-1, rest))
    codes = np.pad(blocks.codes, ((0, 0), (0, -rest % INT4.group)))
    assert blocks.offset is not None, blocks.storage
    leaves: dict[str, Array] = {
        "kernel": pack_int4(codes, INT4.group),
        "scale": blocks.scale.astype(np.float16),
        "offset": blocks.offset.astype(np.float16),
    }
    shape = outputs if inputs == 1 else (*outputs, first)
    return {name: leaf.reshape(*shape, -1) for name, leaf in leaves.items()}


def _leaves(quant: str, inputs: Dims, outputs: Dims) -> Leaves:
    if quant == "fp8":
        return {"kernel": (outputs + inputs, jnp.float8_e4m3fn), "scale": (outputs, jnp.float32)}
    assert len(inputs) > 1 or inputs[0][1] in (None, "embed"), "groups would be cut by the sharding"
    groups = -(-_split(tuple(size for size, _ in inputs))[1] // INT4.group)
    before = outputs if len(inputs) == 1 else (*outputs, inputs[0])
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
    return multiplies_fp8(jax.local_devices()[0])
