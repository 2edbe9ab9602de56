"""A matrix and a few rows as one GPU kernel: the norm before, the activation or the sum behind, the weights as they are stored.

Knows arrays, no layers. What a step of few tokens takes is the reading of weights. So they are widened in registers, each
once, for all rows; and what stands around a product in a layer is computed along with it rather than by kernels of its own.
A program makes `OUT` outputs of all rows. One row goes through the cores that every GPU has, more through tensor cores.
Nothing that a row gets depends on the rows beside it, and its sums only on whether it is alone.

Run in Pallas' interpreter only, and compiled for cards that were not there. It lowers through Triton, as `attention.flash`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.matrices import PACKED, Around, Matrix, Shape, activate
from models.widened import LEAST_ROWS, Inside, Stored, along_row, along_rows, load, readable

OUT, EXACT_OUT = 32, 8
"""Outputs of a program: 64 bytes of a row of a bfloat16 matrix, which is what a GPU's memory gives at once. Exact matrices have
few outputs, which are to keep several multiprocessors busy."""

LEAST_TILE = 64
"""What inputs must be multiples of."""

MOST_ROWS = 64
"""So many were compiled for."""


def refuses(shape: Shape) -> str | None:
    """Why there is no kernel for such a matrix; None where there is one."""
    outputs, out = shape.outputs // (2 if shape.gated else 1), _out(shape)
    if outputs % out or shape.inputs % LEAST_TILE:
        return f"takes outputs by {out} and inputs by {LEAST_TILE}, not {outputs} and {shape.inputs}"
    return None


def most_rows(shape: Shape) -> int:
    """Tensor cores have no float32."""
    return 1 if shape.kind == "exact" else MOST_ROWS


def _out(shape: Shape) -> int:
    return EXACT_OUT if shape.kind == "exact" else OUT


def product(x: jax.Array, matrix: Matrix, around: Around, *, dtype: Any = None, interpret: bool = False) -> jax.Array:
    """x [T, I] -> [T, O], or [T, O / 2] where gated, in `dtype` or that of x. Sums are float32; activations are not rounded."""
    rows, gated = x.shape[0], around.activation is not None
    shape = matrix.shape(gated=gated)
    assert refuses(shape) is None, refuses(shape)
    assert x.shape[1] == shape.inputs, f"{x.shape} and {shape}"
    assert rows <= most_rows(shape), f"{rows} rows of {shape}"
    outputs, out = shape.outputs // (2 if gated else 1), _out(shape)
    leaves = readable(matrix.kind, matrix.leaves)
    norm = None if around.norm is None else around.norm.weight
    given = {"norm": norm, "bias": around.bias, "residual": around.residual}
    extra = {name: array for name, array in given.items() if array is not None}
    arrays = (x, *leaves, *extra.values())

    def kernel(*refs: Any) -> None:
        x_ref, *others = refs
        named = dict(zip(extra, others[len(leaves) :], strict=False))
        matrix_refs = Stored(matrix.kind, others[: len(leaves)])
        (_alone if rows == 1 else _together)(_Refs(out, x_ref, matrix_refs, named, others[-1]), around)

    # Codes of 4 bits make the most of values in registers.
    warps = 8 if rows == 1 or (matrix.kind in PACKED and rows > LEAST_ROWS) else 4
    call: Any = pl.pallas_call(
        kernel,
        grid=(outputs // out,),
        in_specs=[whole(array.shape) for array in arrays],
        out_specs=whole((rows, outputs)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype or x.dtype),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=3),
        interpret=interpret,
        name=f"{matrix.kind}_{'row' if rows == 1 else 'rows'}",
    )
    made: jax.Array = call(*arrays)
    return made


@frozen
class _Refs:
    """What a program sees: how many outputs it makes, x, the matrix, by name what stands around, and where the product goes."""

    out: int
    x: Any
    matrix: Stored
    extra: Mapping[str, Any]
    made: Any

    def places(self, around: Around) -> list[jax.Array]:
        """Which outputs of the matrix a program makes; where gated, of both halves."""
        out = pl.program_id(0) * self.out + jnp.arange(self.out, dtype=jnp.int32)
        return [out] if around.activation is None else [out, out + self.made.shape[1]]


def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    """Of an array that a program indexes by itself."""
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def _alone(refs: _Refs, around: Around) -> None:
    places = refs.places(around)

    def values(at: jax.Array, inside: Inside) -> tuple[jax.Array, jax.Array]:
        x = load(refs.x.at[0, at], inside).astype(jnp.float32)
        return (x * load(refs.extra["norm"].at[at], inside) if "norm" in refs.extra else x), x * x

    squares, sums = along_row(values, refs.matrix, places, refs.x.shape[1])
    y = _finished(refs, around, places, sums, squares)
    if "residual" in refs.extra:
        y += triton.load(refs.extra["residual"].at[0, places[0]]).astype(jnp.float32)
    triton.store(refs.made.at[0, places[0]], y.astype(refs.made.dtype))


def _together(refs: _Refs, around: Around) -> None:
    (rows, inputs), places = refs.x.shape, refs.places(around)
    row = jnp.arange(padded(rows), dtype=jnp.int32)
    there = row < rows

    def values(at: jax.Array, _: Inside) -> tuple[jax.Array, jax.Array]:
        x = triton.load(refs.x.at[row[:, None], at[None]], mask=there[:, None], other=0)
        return normed_values(x, refs.extra.get("norm"), at)

    squares, sums = along_rows(values, refs.matrix, places, inputs, row.size)
    y = _finished(refs, around, places, sums, squares)
    where, inside = (row[None], places[0][:, None]), jnp.broadcast_to(there[None], y.shape)
    if "residual" in refs.extra:
        y += triton.load(refs.extra["residual"].at[where], mask=inside, other=0).astype(jnp.float32)
    triton.store(refs.made.at[where], y.astype(refs.made.dtype), mask=inside)


def padded(rows: int) -> int:
    """Of what tensor cores multiply."""
    return max(pl.next_power_of_2(rows), LEAST_ROWS)


def normed_values(x: jax.Array, norm: Any, at: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x [T, N] at some inputs times what the norm has there, in its dtype, and sums of squares [T]."""
    if norm is None:
        return x, jnp.zeros(x.shape[0], jnp.float32)
    wide = x.astype(jnp.float32)
    return (wide * triton.load(norm.at[at])[None]).astype(x.dtype), (wide * wide).sum(axis=1)


def _finished(
    refs: _Refs, around: Around, places: list[jax.Array], sums: Sequence[jax.Array], squares: jax.Array
) -> jax.Array:
    """Sums [OUT] or [OUT, T] at each of `places`, of rows with these sums of `squares` -> what is made of them."""
    scale = None if around.norm is None else lax.rsqrt(squares / refs.x.shape[1] + around.norm.epsilon)
    made = []
    for total, out in zip(sums, places, strict=True):
        y = scaled(total, refs.matrix, out, scale)
        made.append(y + by_output(triton.load(refs.extra["bias"].at[out]), y) if "bias" in refs.extra else y)
    return made[0] if around.activation is None else activate(around.activation, *made)


def scaled(total: jax.Array, matrix: Stored, out: jax.Array, scale: jax.Array | None) -> jax.Array:
    """Sums [OUT] or [OUT, T] by the outputs' scales, and by those of the rows' norms, if there are any."""
    of_outputs = matrix.scale(out)
    y = total if of_outputs is None else total * by_output(of_outputs, total)
    if scale is None:
        return y
    return y * (scale[None] if scale.ndim else scale)


def by_output(part: jax.Array, like: jax.Array) -> jax.Array:
    """[OUT] float32, as it meets sums [OUT] or [OUT, T]."""
    wide = part.astype(jnp.float32)
    return wide if like.ndim == 1 else wide[:, None]
