"""A matrix and a few rows as one GPU kernel: the norm before, the activation or the sum behind, the weights as they are stored.

Knows arrays, no layers. What a step of few tokens takes is the reading of weights. So they are widened in registers, each
once, for all rows; and what stands around a product in a layer is computed along with it rather than by kernels of its own.
A program makes `OUT` outputs of all rows. One row goes through the cores that every GPU has, more through tensor cores.
Nothing that a row gets depends on the rows beside it, and its sums only on whether it is alone.

Run in Pallas' interpreter only, and compiled for cards that were not there. It lowers through Triton, as `attention.flash`.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.matrices import GROUP, Around, Kind, Matrix, Shape, activate

OUT = 32
"""Outputs of a program: 64 bytes of a row of a bfloat16 matrix, which is what a GPU's memory gives at once."""

AT_ONCE = {"float": 512, "table": 512, "int8": 512, "fp8": 512, "int4": 1024}
"""Inputs that one row reads before it waits: 16 to 32 KiB on their way for each program."""

TILE, LEAST_TILE = 128, 64
"""Inputs that tensor cores take at once, and what there must be multiples of."""

LEAST_ROWS, MOST_ROWS = 16, 64
"""Tensor cores multiply at least so many rows; and so many at most were compiled for."""


def refuses(shape: Shape) -> str | None:
    """Why there is no kernel for such a matrix; None where there is one."""
    outputs = shape.outputs // (2 if shape.gated else 1)
    if outputs % OUT or shape.inputs % LEAST_TILE:
        return f"takes outputs by {OUT} and inputs by {LEAST_TILE}, not {outputs} and {shape.inputs}"
    return None


def product(x: jax.Array, matrix: Matrix, around: Around, *, dtype: Any = None, interpret: bool = False) -> jax.Array:
    """x [T, I] -> [T, O], or [T, O / 2] where gated, in `dtype` or that of x. Sums are float32; activations are not rounded."""
    rows, gated = x.shape[0], around.activation is not None
    shape = matrix.shape(gated=gated)
    assert refuses(shape) is None, refuses(shape)
    assert x.shape[1] == shape.inputs, f"{x.shape} and {shape}"
    outputs = shape.outputs // (2 if gated else 1)
    leaves = matrix.leaves
    if matrix.kind == "fp8":  # cards before Ada know no float8
        leaves = (lax.bitcast_convert_type(leaves[0], jnp.uint8), *leaves[1:])
    norm = None if around.norm is None else around.norm.weight
    given = {"norm": norm, "bias": around.bias, "residual": around.residual}
    extra = {name: array for name, array in given.items() if array is not None}
    arrays = (x, *leaves, *extra.values())

    def kernel(*refs: Any) -> None:
        x_ref, *others = refs
        named = dict(zip(extra, others[len(leaves) :], strict=False))
        (_alone if rows == 1 else _together)(
            _Refs(matrix.kind, x_ref, others[: len(leaves)], named, others[-1]), around
        )

    # Codes of 4 bits make the most of values in registers.
    warps = 8 if rows == 1 or (matrix.kind == "int4" and rows > LEAST_ROWS) else 4
    call: Any = pl.pallas_call(
        kernel,
        grid=(outputs // OUT,),
        in_specs=[_whole(array.shape) for array in arrays],
        out_specs=_whole((rows, outputs)),
        out_shape=jax.ShapeDtypeStruct((rows, outputs), dtype or x.dtype),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=3),
        interpret=interpret,
        name=f"{matrix.kind}_{'row' if rows == 1 else 'rows'}",
    )
    made: jax.Array = call(*arrays)
    return made


@frozen
class _Refs:
    """What a program sees: x, the leaves of the matrix, by name what stands around, and where the product goes."""

    kind: Kind
    x: Any
    leaves: Sequence[Any]
    extra: Mapping[str, Any]
    made: Any

    def places(self, around: Around) -> list[jax.Array]:
        """Which outputs of the matrix a program makes, [OUT]; where gated, of both halves."""
        out = pl.program_id(0) * OUT + jnp.arange(OUT, dtype=jnp.int32)
        return [out] if around.activation is None else [out, out + self.made.shape[1]]


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda _: (0,) * len(shape))


def _alone(refs: _Refs, around: Around) -> None:
    """One row: every thread multiplies what it reads, and they add up once in the end."""
    inputs, places = refs.x.shape[1], refs.places(around)
    width = gcd(AT_ONCE[refs.kind] // len(places), inputs)
    coded = refs.kind == "int4"

    def values(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x at these inputs as it meets the matrix, and its squares."""
        x = triton.load(refs.x.at[0, at]).astype(jnp.float32)
        return (x * triton.load(refs.extra["norm"].at[at]) if "norm" in refs.extra else x), x * x

    def body(block: Any, carry: Any) -> Any:
        squares, sums = carry
        if coded:
            (low, low2), (high, high2) = map(values, _halves(block * width, width))
            more, parts = low2 + high2, [_grouped(refs, place, block * width, (low, high)) for place in places]
        else:
            at = block * width + jnp.arange(width, dtype=jnp.int32)
            x, more = values(at)
            parts = [_weights(refs, place, at) * x[None] for place in places]
        return squares + more, tuple(a + b for a, b in zip(sums, parts, strict=True))

    lanes = width // GROUP if coded else width
    carry = (_zeros(width // 2 if coded else width), tuple(_zeros(OUT, lanes) for _ in places))
    squares, sums = lax.fori_loop(0, inputs // width, body, carry)
    y = _finished(refs, around, places, [part.sum(axis=1) for part in sums], squares.sum())
    if "residual" in refs.extra:
        y += triton.load(refs.extra["residual"].at[0, places[0]]).astype(jnp.float32)
    triton.store(refs.made.at[0, places[0]], y.astype(refs.made.dtype))


def _together(refs: _Refs, around: Around) -> None:
    """Several rows, as columns of what tensor cores multiply the weights with."""
    (rows, inputs), places = refs.x.shape, refs.places(around)
    row = jnp.arange(max(pl.next_power_of_2(rows), LEAST_ROWS), dtype=jnp.int32)
    there = row < rows
    coded = refs.kind == "int4"
    tile = gcd(
        TILE // 2 if coded and row.size > LEAST_ROWS else TILE, inputs
    )  # or their values would not fit into the registers

    def values(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = triton.load(refs.x.at[row[:, None], at[None]], mask=there[:, None], other=0)
        if "norm" not in refs.extra:
            return x, jnp.zeros(row.shape, jnp.float32)
        wide = x.astype(jnp.float32)
        return (wide * triton.load(refs.extra["norm"].at[at])[None]).astype(x.dtype), (wide * wide).sum(axis=1)

    def body(block: Any, carry: Any) -> Any:
        squares, sums = carry
        if coded:
            (low, low2), (high, high2) = map(values, _halves(block * tile, tile))
            more, weights = low2 + high2, [_spread(refs, place, block * tile, tile) for place in places]
            parts = [triton.dot(weak, low.T) + triton.dot(strong, high.T) for weak, strong in weights]
        else:
            at = block * tile + jnp.arange(tile, dtype=jnp.int32)
            x, more = values(at)
            parts = [triton.dot(_weights(refs, place, at).astype(x.dtype), x.T) for place in places]
        return squares + more, tuple(a + b for a, b in zip(sums, parts, strict=True))

    carry = (_zeros(row.size), tuple(_zeros(OUT, row.size) for _ in places))
    squares, sums = lax.fori_loop(0, inputs // tile, body, carry)
    y = _finished(refs, around, places, sums, squares)
    where, inside = (row[None], places[0][:, None]), jnp.broadcast_to(there[None], y.shape)
    if "residual" in refs.extra:
        y += triton.load(refs.extra["residual"].at[where], mask=inside, other=0).astype(jnp.float32)
    triton.store(refs.made.at[where], y.astype(refs.made.dtype), mask=inside)


def _zeros(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.float32)


def _weights(refs: _Refs, out: jax.Array, at: jax.Array) -> jax.Array:
    """[out, at] without the outputs' scales; float32, or as floats are stored."""
    across = refs.kind == "float"
    where = (at[:, None], out[None]) if across else (out[:, None], at[None])
    stored: jax.Array = triton.load(refs.leaves[0].at[where])
    match refs.kind:
        case "float":
            return stored.transpose()
        case "int8":
            return stored.astype(jnp.float32)
        case "fp8":
            return _of_fp8(stored)
    return stored


def _of_fp8(stored: jax.Array) -> jax.Array:
    """Bits of float8_e4m3fn -> float32: exponent and fraction where a float32 has them, then the exponents' difference."""
    bits = stored.astype(jnp.int32)
    moved = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
    values: jax.Array = lax.bitcast_convert_type(moved, jnp.float32) * jnp.float32(2.0**120)
    return values


def _halves(begin: Any, width: int) -> tuple[jax.Array, jax.Array]:
    """Of `width` inputs those that low codes meet, and high ones, each [width / 2]."""
    byte = jnp.arange(width // 2, dtype=jnp.int32)
    low = begin + (byte // (GROUP // 2)) * GROUP + byte % (GROUP // 2)
    return low, low + GROUP // 2


def _codes(refs: _Refs, out: jax.Array, begin: Any, width: int) -> tuple[jax.Array, ...]:
    """Low and high codes float32 [out, width / 2]; scale and offset float32 [out, groups]."""
    byte = begin // 2 + jnp.arange(width // 2, dtype=jnp.int32)
    group = begin // GROUP + jnp.arange(width // GROUP, dtype=jnp.int32)
    codes = triton.load(refs.leaves[0].at[out[:, None], byte[None]]).astype(jnp.int32)
    scale, offset = (triton.load(leaf.at[out[:, None], group[None]]).astype(jnp.float32) for leaf in refs.leaves[1:])
    return (codes & 15).astype(jnp.float32), (codes >> 4).astype(jnp.float32), scale, offset


def _grouped(refs: _Refs, out: jax.Array, begin: Any, x: tuple[jax.Array, jax.Array]) -> jax.Array:
    """What each group adds to the product of one row, [out, groups]; `x` as low and high codes meet it."""
    half, groups = GROUP // 2, x[0].size // (GROUP // 2)
    low, high, scale, offset = _codes(refs, out, begin, groups * GROUP)
    by_code = (low * x[0][None] + high * x[1][None]).reshape(OUT, groups, half).sum(axis=2)
    return scale * by_code + offset * (x[0] + x[1]).reshape(groups, half).sum(axis=1)[None]


def _spread(refs: _Refs, out: jax.Array, begin: Any, width: int) -> tuple[jax.Array, jax.Array]:
    """The weights that low and high codes stand for, [out, width / 2] in the dtype of x."""
    low, high, scale, offset = _codes(refs, out, begin, width)
    shape = (OUT, width // GROUP, GROUP // 2)
    wide, by = (jnp.broadcast_to(part[:, :, None], shape).reshape(OUT, width // 2) for part in (scale, offset))
    return (low * wide + by).astype(refs.x.dtype), (high * wide + by).astype(refs.x.dtype)


def _finished(
    refs: _Refs, around: Around, places: list[jax.Array], sums: Sequence[jax.Array], squares: jax.Array
) -> jax.Array:
    """Sums [OUT] or [OUT, T] at each of `places`, of rows with these sums of `squares` -> what is made of them."""
    made = []
    for total, out in zip(sums, places, strict=True):

        def by_output(ref: Any, out: jax.Array = out, like: jax.Array = total) -> jax.Array:
            part: jax.Array = triton.load(ref.at[out]).astype(jnp.float32)
            return part if like.ndim == 1 else part[:, None]

        y = total * by_output(refs.leaves[1]) if refs.kind in {"int8", "fp8"} else total
        if around.norm is not None:
            scale = lax.rsqrt(squares / refs.x.shape[1] + around.norm.epsilon)
            y = y * (scale[None] if scale.ndim else scale)
        made.append(y + by_output(refs.extra["bias"]) if "bias" in refs.extra else y)
    return made[0] if around.activation is None else activate(around.activation, *made)
