"""Weights as they are stored, widened in a GPU program's registers and multiplied with rows; knows arrays, no layers.

For kernels that lower through Triton. A matrix may be one of a stack, whose number the program reads on the device.
"""

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental.pallas import triton

from models.matrices import GROUP, PACKED, Kind
from models.products import e2m1, e8m0

AT_ONCE = {"float": 512, "table": 512, "exact": 512, "int8": 512, "fp8": 512, "int4": 1024, "mxfp4": 1024}
"""Inputs that one row reads before it waits: 16 to 32 KiB on their way for each program of 32 outputs."""

TILE = 128
"""Inputs that tensor cores take at once."""

LEAST_ROWS = 16
"""Tensor cores multiply at least so many rows."""

Inside = jax.Array | None
"""Which of some inputs [N] there are; None: all."""

Read = Callable[[jax.Array, Inside], tuple[jax.Array, jax.Array]]
"""x at some inputs [N] as it meets the matrix, and the sum of its squares: of one row float32 [N] and as many squares, of
several [T, N] and [T]. What is not there is zero."""


@frozen
class Stored:
    """The references of a matrix's leaves, as `models.matrices.Matrix` has them. `number`: which of a stack, if it is one."""

    kind: Kind
    leaves: Sequence[Any]
    number: tuple[jax.Array, ...] = ()

    def weights(self, out: jax.Array, at: jax.Array, inside: Inside = None) -> jax.Array:
        """[out, at] without the outputs' scales; float32, or as floats are stored. Not of codes in groups."""
        across = self.kind in ("float", "exact")
        where = (at[:, None], out[None]) if across else (out[:, None], at[None])
        known = None if inside is None else inside[:, None] if across else inside[None]
        stored = load(self.leaves[0].at[(*self.number, *where)], known)
        match self.kind:
            case "float" | "exact":
                return stored.transpose()
            case "int8":
                return stored.astype(jnp.float32)
            case "fp8":
                return _of_fp8(stored)
        return stored

    def scale(self, out: jax.Array) -> jax.Array | None:
        """float32 [out], what an output is multiplied by; None where by nothing."""
        if self.kind not in ("int8", "fp8"):
            return None
        return triton.load(self.leaves[1].at[(*self.number, out)]).astype(jnp.float32)

    def codes(
        self, out: jax.Array, begin: Any, width: int, limit: int | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """Low and high codes float32 [out, width / 2]; scale and offset float32 [out, groups]. MXFP4 has no offset."""
        byte = begin // 2 + jnp.arange(width // 2, dtype=jnp.int32)
        group = begin // GROUP + jnp.arange(width // GROUP, dtype=jnp.int32)
        bytes_, groups = (
            None if limit is None else (at < limit // each)[None] for at, each in ((byte, 2), (group, GROUP))
        )
        codes = load(self.leaves[0].at[(*self.number, out[:, None], byte[None])], bytes_).astype(jnp.int32)
        by_group = [load(leaf.at[(*self.number, out[:, None], group[None])], groups) for leaf in self.leaves[1:]]
        if self.kind == "mxfp4":
            return e2m1(codes & 15), e2m1(codes >> 4), e8m0(by_group[0]), None
        scale, offset = (part.astype(jnp.float32) for part in by_group)
        return (codes & 15).astype(jnp.float32), (codes >> 4).astype(jnp.float32), scale, offset


def readable(kind: Kind, leaves: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """As kernels take them: cards before Ada know no float8."""
    return (lax.bitcast_convert_type(leaves[0], jnp.uint8), *leaves[1:]) if kind == "fp8" else leaves


def load(ref: Any, inside: Inside) -> jax.Array:
    """Zeros where nothing is."""
    found: jax.Array = triton.load(ref) if inside is None else triton.load(ref, mask=inside, other=0)
    return found


def width_of_row(kind: Kind, inputs: int, places: int) -> tuple[int, int | None]:
    """Inputs that a row takes at once, where each meets `places` matrices, and where they end if not with the last of these:
    rather than to wait for few at a time.
    """
    most = min(AT_ONCE[kind] // places, 1 << (inputs - 1).bit_length())
    even = gcd(most, inputs)
    return (even, None) if 2 * even >= most else (most, inputs)


def part_of_row(
    stored: Stored, out: jax.Array, begin: Any, x: tuple[jax.Array, ...], limit: int | None = None
) -> jax.Array:
    """What inputs from `begin` on add to outputs of one row, [out, lanes]; `x` as `read_row` gives it."""
    if stored.kind in PACKED:
        return _grouped(stored, out, begin, x, limit)
    at = begin + jnp.arange(x[0].size, dtype=jnp.int32)
    return stored.weights(out, at, None if limit is None else at < limit) * x[0][None]


def read_row(
    kind: Kind, read: Read, begin: Any, width: int, limit: int | None = None
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """x at inputs from `begin` on as `part_of_row` takes it, and the squares."""

    def values(at: jax.Array) -> tuple[jax.Array, jax.Array]:
        return read(at, None if limit is None else at < limit)

    if kind in PACKED:
        (low, low2), (high, high2) = map(values, halves(begin, width))
        return (low, high), low2 + high2
    x, squares = values(begin + jnp.arange(width, dtype=jnp.int32))
    return (x,), squares


def along_row(read: Read, matrix: Stored, places: Sequence[jax.Array], inputs: int) -> tuple[jax.Array, Any]:
    """One row: its sum of squares, and at each of `places` the sums [out]. Every thread multiplies what it reads, and they
    add up once in the end.
    """
    width, limit = width_of_row(matrix.kind, inputs, len(places))

    def body(block: Any, carry: Any) -> Any:
        squares, sums = carry
        x, more = read_row(matrix.kind, read, block * width, width, limit)
        parts = [part_of_row(matrix, out, block * width, x, limit) for out in places]
        return squares + more, tuple(a + b for a, b in zip(sums, parts, strict=True))

    coded = matrix.kind in PACKED
    lanes = width // GROUP if coded else width
    carry = (zeros(width // 2 if coded else width), tuple(zeros(out.size, lanes) for out in places))
    squares, sums = lax.fori_loop(0, -(-inputs // width), body, carry)
    return squares.sum(), [part.sum(axis=1) for part in sums]


def along_rows(
    read: Read, matrix: Stored, places: Sequence[jax.Array], inputs: int, rows: int
) -> tuple[jax.Array, Any]:
    """`rows` of them, as columns of what tensor cores multiply the weights with, in the dtype of x: of each its sum of squares
    [T], and at each of `places` the sums [out, T].
    """
    coded = matrix.kind in PACKED
    # More of them would not fit into the registers.
    tile = gcd(TILE // 2 if coded and rows > LEAST_ROWS else TILE, inputs)

    def body(block: Any, carry: Any) -> Any:
        squares, sums = carry
        if coded:
            (low, low2), (high, high2) = (read(at, None) for at in halves(block * tile, tile))
            more, weights = low2 + high2, [_spread(matrix, out, block * tile, tile, low.dtype) for out in places]
            parts = [triton.dot(weak, low.T) + triton.dot(strong, high.T) for weak, strong in weights]
        else:
            at = block * tile + jnp.arange(tile, dtype=jnp.int32)
            x, more = read(at, None)
            parts = [triton.dot(matrix.weights(out, at).astype(x.dtype), x.T) for out in places]
        return squares + more, tuple(a + b for a, b in zip(sums, parts, strict=True))

    carry = (zeros(rows), tuple(zeros(out.size, rows) for out in places))
    squares, sums = lax.fori_loop(0, inputs // tile, body, carry)
    return squares, list(sums)


def zeros(*shape: int) -> jax.Array:
    """float32."""
    return jnp.zeros(shape, jnp.float32)


def halves(begin: Any, width: int) -> tuple[jax.Array, jax.Array]:
    """Of `width` inputs those that low codes meet, and high ones, each [width / 2]."""
    byte = jnp.arange(width // 2, dtype=jnp.int32)
    low = begin + (byte // (GROUP // 2)) * GROUP + byte % (GROUP // 2)
    return low, low + GROUP // 2


def _of_fp8(stored: jax.Array) -> jax.Array:
    """Bits of float8_e4m3fn -> float32: exponent and fraction where a float32 has them, then the exponents' difference."""
    bits = stored.astype(jnp.int32)
    moved = ((bits & 0x80) << 24) | ((bits & 0x7F) << 20)
    values: jax.Array = lax.bitcast_convert_type(moved, jnp.float32) * jnp.float32(2.0**120)
    return values


def _grouped(stored: Stored, out: jax.Array, begin: Any, x: tuple[jax.Array, ...], limit: int | None) -> jax.Array:
    """What each group adds to the product of one row, [out, groups]; `x` as low and high codes meet it."""
    half, groups = GROUP // 2, x[0].size // (GROUP // 2)
    low, high, scale, offset = stored.codes(out, begin, groups * GROUP, limit)
    by_code = (low * x[0][None] + high * x[1][None]).reshape(out.size, groups, half).sum(axis=2)
    if offset is None:
        return scale * by_code
    return scale * by_code + offset * (x[0] + x[1]).reshape(groups, half).sum(axis=1)[None]


def _spread(stored: Stored, out: jax.Array, begin: Any, width: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The weights that low and high codes stand for, [out, width / 2] in `dtype`."""
    low, high, scale, offset = stored.codes(out, begin, width)
    shape = (out.size, width // GROUP, GROUP // 2)

    def each(part: jax.Array) -> jax.Array:
        return jnp.broadcast_to(part[:, :, None], shape).reshape(out.size, width // 2)

    wide = each(scale)
    if offset is None:
        return (low * wide).astype(dtype), (high * wide).astype(dtype)
    by = each(offset)
    return (low * wide + by).astype(dtype), (high * wide + by).astype(dtype)
