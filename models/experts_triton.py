"""A layer's experts and the tokens that chose them in two GPU kernels, the weights as stored; knows arrays, no layers.

What a step of few tokens takes is the reading of weights: only those of its own experts are read, each once for all tokens that
chose it. A program makes some outputs of one expert. Of a token alone there are programs for its experts, whose weighted sum is
folded into the second kernel. Of several there are programs for every pair of a token and an expert, or every expert
where these are fewer; those of experts that nobody chose, or that an earlier pair has, end at once. Where tokens are many,
another kernel sorts the pairs, and an expert has as many programs as these fill. What a token gets does not depend on those
beside it, and its sums only on whether it is alone.

Run in Pallas' interpreter only, and compiled for cards that were not there. It lowers through Triton.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import evolve, frozen
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.expert_groups import WIDE_OUT, PairGroups, PairRows, by_expert, in_tiles
from models.few_rows import MOST_ROWS, OUT, by_output, normed_values, scaled, whole
from models.matrices import GROUP, PACKED, Matrix, activate
from models.mixtures import ExpertMatrices, MixtureShape
from models.nn import normed
from models.widened import (
    LEAST_ROWS,
    Inside,
    Stored,
    along_row,
    along_rows,
    load,
    part_of_row,
    read_row,
    readable,
    width_of_row,
    zeros,
)

LEAST_TILE = 32
"""What inputs must be multiples of."""

SUM_OUT = 16
"""Outputs of a program that sums over experts: half as many, and so twice the programs that have a part of the weights."""

PAIRS_AT_ONCE = (4, 3, 2, 1)
"""Experts that such a program reads before it waits: the largest that divides them."""


def refuses(shape: MixtureShape) -> str | None:
    """Why there are no kernels for such a mixture; None where there are."""
    width, outputs = shape.down.inputs, shape.down.outputs
    if width % OUT or outputs % OUT or shape.gate_up.inputs % LEAST_TILE:
        return f"takes widths by {OUT}, not {width} and {outputs}"
    most = max(shape.count * one.outputs * one.inputs for one in (shape.gate_up, shape.down))
    if most >= 2**31:
        return f"counts up to 2^31 weights, not {most}"
    return None


def through(
    x: jax.Array,
    chosen: jax.Array,
    shares: jax.Array,
    mixture: ExpertMatrices,
    residual: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `models.mixtures.ThroughKernel`. Sums are float32; activations are not rounded."""
    shape = mixture.shape(chosen.shape[1])
    assert refuses(shape) is None, refuses(shape)
    if x.shape[0] == 1:
        return _fall_alone(_rise_alone(x, chosen, mixture, interpret), (chosen, shares), mixture, residual, interpret)
    if x.shape[0] <= MOST_ROWS:
        groups = by_expert(chosen, shape.count)
    else:
        groups = in_tiles(chosen, shape.count, *_tile(shape), interpret=interpret)
        x, mixture = (x if mixture.norm is None else normed(x, mixture.norm)), evolve(mixture, norm=None)
    inner = _rise(x, groups, chosen.size, mixture, interpret)
    pairs = _fall(inner, shares, groups, mixture, interpret)
    total = pairs.reshape(*chosen.shape, -1).sum(axis=1)
    return (total if residual is None else residual.astype(jnp.float32) + total).astype(x.dtype)


@frozen
class _Refs:
    """What a program sees: by name what it is given, the stack's leaves, and where its product goes."""

    given: Mapping[str, Any]
    matrix: Matrix
    leaves: Sequence[Any]
    made: Any

    def of(self, number: jax.Array) -> Stored:
        """The matrix of one expert."""
        return Stored(self.matrix.kind, self.leaves, (number,))

    def places(self, begin: Any, count: int, apart: int | None) -> list[jax.Array]:
        """Which outputs of the matrix a program makes; where gated, of both halves, which are so far `apart`."""
        out = begin * count + jnp.arange(count, dtype=jnp.int32)
        return [out] if apart is None else [out, out + apart]


def _call(
    program: Callable[[_Refs], None],
    name: str,
    given: Mapping[str, jax.Array | None],
    matrix: Matrix,
    *,
    grid: tuple[int, ...],
    made: jax.ShapeDtypeStruct,
    warps: int,
    interpret: bool,
) -> jax.Array:
    there = {what: array for what, array in given.items() if array is not None}
    leaves = readable(matrix.kind, matrix.leaves)

    def kernel(*refs: Any) -> None:
        program(_Refs(dict(zip(there, refs, strict=False)), matrix, refs[len(there) : -1], refs[-1]))

    arrays = (*there.values(), *leaves)
    call: Any = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[whole(array.shape) for array in arrays],
        out_specs=whole(made.shape),
        out_shape=made,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=3),
        interpret=interpret,
        name=name,
    )
    found: jax.Array = call(*arrays)
    return found


def _rise_alone(x: jax.Array, chosen: jax.Array, mixture: ExpertMatrices, interpret: bool) -> jax.Array:
    """x [1, D] -> what each of its experts makes of it, [active, F]."""
    active, (width, inputs) = chosen.shape[1], _sizes(mixture)
    norm = None if mixture.norm is None else mixture.norm.weight
    given = {"x": x, "chosen": chosen, "norm": norm, "bias": mixture.up_bias}

    def values(refs: _Refs, at: jax.Array, inside: Inside) -> tuple[jax.Array, jax.Array]:
        row = load(refs.given["x"].at[0, at], inside).astype(jnp.float32)
        return (row * load(refs.given["norm"].at[at], inside) if norm is not None else row), row * row

    def program(refs: _Refs) -> None:
        pair = pl.program_id(1)
        number = _scalar(refs.given["chosen"], pair)
        places, stored = refs.places(pl.program_id(0), OUT, _apart(mixture)), refs.of(number)
        squares, sums = along_row(partial(values, refs), stored, places, inputs)
        y = _activated(refs, mixture, number, zip(sums, places, strict=True), squares / inputs)
        triton.store(refs.made.at[pair, places[0]], y.astype(refs.made.dtype))

    made = jax.ShapeDtypeStruct((active, width), x.dtype)
    return _call(
        program,
        _name(mixture.gate_up, active, 1),
        given,
        mixture.gate_up,
        grid=(width // OUT, active),
        made=made,
        warps=8,
        interpret=interpret,
    )


def _fall_alone(
    inner: jax.Array,
    routed: tuple[jax.Array, jax.Array],
    mixture: ExpertMatrices,
    residual: jax.Array | None,
    interpret: bool,
) -> jax.Array:
    """inner [active, F] -> the weighted sum of what the experts make of it, and the residual, [1, D]."""
    chosen, shares = routed
    active, (inputs, outputs) = chosen.shape[1], (inner.shape[1], mixture.down.shape().outputs)
    given = {"inner": inner, "chosen": chosen, "shares": shares, "bias": mixture.down_bias, "residual": residual}
    at_once = next(count for count in PAIRS_AT_ONCE if active % count == 0)
    kind = mixture.down.kind
    width, limit = width_of_row(kind, inputs, 1)

    def several(refs: _Refs, out: jax.Array, group: Any) -> jax.Array:
        """What `at_once` experts from a number on add to the sum, [out]."""
        pairs = [group * at_once + one for one in range(at_once)]
        maps = [refs.of(_scalar(refs.given["chosen"], pair)) for pair in pairs]
        shares = [_scalar(refs.given["shares"], pair) for pair in pairs]
        factors = [_by_scale(share, stored.scale(out)) for share, stored in zip(shares, maps, strict=True)]
        rows = [partial(_row, refs, pair) for pair in pairs]

        def body(block: Any, total: jax.Array) -> jax.Array:
            for read, stored, factor in zip(rows, maps, factors, strict=True):
                x, _ = read_row(kind, read, block * width, width, limit)
                total = total + part_of_row(stored, out, block * width, x, limit) * factor
            return total

        lanes = width // GROUP if kind in PACKED else width
        total: jax.Array = lax.fori_loop(0, -(-inputs // width), body, zeros(out.size, lanes)).sum(axis=1)
        if "bias" in refs.given:
            for share, stored in zip(shares, maps, strict=True):
                bias = triton.load(refs.given["bias"].at[(*stored.number, out)])
                total = total + share * bias.astype(jnp.float32)
        return total

    def program(refs: _Refs) -> None:
        (out,) = refs.places(pl.program_id(0), SUM_OUT, None)
        y = lax.fori_loop(0, active // at_once, lambda group, y: y + several(refs, out, group), zeros(out.size))
        if "residual" in refs.given:
            y += triton.load(refs.given["residual"].at[0, out]).astype(jnp.float32)
        triton.store(refs.made.at[0, out], y.astype(refs.made.dtype))

    made = jax.ShapeDtypeStruct((1, outputs), inner.dtype)
    return _call(
        program,
        _name(mixture.down, active, 1),
        given,
        mixture.down,
        grid=(outputs // SUM_OUT,),
        made=made,
        warps=8,
        interpret=interpret,
    )


def _by_scale(share: jax.Array, scale: jax.Array | None) -> jax.Array:
    """What an expert's products are multiplied by: a number, or one for each output, [out, 1]."""
    return share if scale is None else (share * scale)[:, None]


def _scalar(ref: Any, pair: Any) -> jax.Array:
    """Of a token that is alone, what there is of one of its pairs."""
    found: jax.Array = triton.load(ref.at[jnp.int32(0), pair])
    return found


def _row(refs: _Refs, pair: Any, at: jax.Array, inside: Inside) -> tuple[jax.Array, jax.Array]:
    row = load(refs.given["inner"].at[pair, at], inside).astype(jnp.float32)
    return row, jnp.zeros_like(row)


def _rise(x: jax.Array, groups: PairGroups, pairs: int, mixture: ExpertMatrices, interpret: bool) -> jax.Array:
    """x [T, D] -> of each pair what its expert makes of its token, [pairs, F]."""
    width, inputs = _sizes(mixture)
    norm = None if mixture.norm is None else mixture.norm.weight
    given = {"x": x, **groups.given, "norm": norm, "bias": mixture.up_bias}

    def program(refs: _Refs) -> None:
        places = refs.places(pl.program_id(0), groups.out, _apart(mixture))
        members = groups.find(refs.given, pl.program_id(1))
        token = members.token

        def values(at: jax.Array, _: Inside) -> tuple[jax.Array, jax.Array]:
            x = triton.load(refs.given["x"].at[token[:, None], at[None]])
            return normed_values(x, refs.given.get("norm"), at)

        @pl.when(members.here)
        def _() -> None:
            squares, sums = along_rows(values, refs.of(members.number), places, inputs, groups.rows)
            y = _activated(refs, mixture, members.number, zip(sums, places, strict=True), squares / inputs)
            _store(refs, members, places[0], y)

    made = jax.ShapeDtypeStruct((pairs, width), x.dtype)
    grid = (width // groups.out, groups.slots)
    return _each(program, groups, given, mixture.gate_up, grid=grid, made=made, interpret=interpret)


def _fall(
    inner: jax.Array, shares: jax.Array, groups: PairGroups, mixture: ExpertMatrices, interpret: bool
) -> jax.Array:
    """inner [pairs, F] -> of each pair what its expert makes of it, times its share, float32 [pairs, D]."""
    (pairs, inputs), outputs = inner.shape, mixture.down.shape().outputs
    given = {"inner": inner, **groups.given, "shares": shares.reshape(-1), "bias": mixture.down_bias}

    def program(refs: _Refs) -> None:
        (out,) = refs.places(pl.program_id(0), groups.out, None)
        members = groups.find(refs.given, pl.program_id(1))
        pair = jnp.minimum(members.pair, pairs - 1)

        def values(at: jax.Array, _: Inside) -> tuple[jax.Array, jax.Array]:
            x = triton.load(refs.given["inner"].at[pair[:, None], at[None]])
            return normed_values(x, None, at)

        @pl.when(members.here)
        def _() -> None:
            stored = refs.of(members.number)
            _, (total,) = along_rows(values, stored, [out], inputs, groups.rows)
            y = scaled(total, stored, out, None)
            if "bias" in refs.given:
                y = y + by_output(triton.load(refs.given["bias"].at[members.number, out]), y)
            share = triton.load(refs.given["shares"].at[pair])
            _store(refs, members, out, y * share[None])

    made = jax.ShapeDtypeStruct((pairs, outputs), jnp.float32)
    grid = (outputs // groups.out, groups.slots)
    return _each(program, groups, given, mixture.down, grid=grid, made=made, interpret=interpret)


def _store(refs: _Refs, members: PairRows, out: jax.Array, y: jax.Array) -> None:
    """y [out, rows], each row where its pair is."""
    mask = jnp.broadcast_to(members.inside[None], y.shape)
    triton.store(refs.made.at[members.pair[None], out[:, None]], y.astype(refs.made.dtype), mask=mask)


def _each(
    program: Callable[[_Refs], None],
    groups: PairGroups,
    given: Mapping[str, jax.Array | None],
    matrix: Matrix,
    *,
    grid: tuple[int, ...],
    made: jax.ShapeDtypeStruct,
    interpret: bool,
) -> jax.Array:
    widened = matrix.kind != "float" and groups.rows > LEAST_ROWS
    warps = 8 if widened or groups.out > OUT else 4
    name = _name(matrix, groups.slots, groups.rows)
    return _call(program, name, given, matrix, grid=grid, made=made, warps=warps, interpret=interpret)


def _activated(
    refs: _Refs,
    mixture: ExpertMatrices,
    number: jax.Array,
    sums: Iterable[tuple[jax.Array, jax.Array]],
    mean: jax.Array,
) -> jax.Array:
    """Sums [OUT] or [OUT, T], each with its outputs, of rows whose squares have this mean -> what goes on."""
    scale = None if mixture.norm is None else lax.rsqrt(mean + mixture.norm.epsilon)
    made = []
    for total, out in sums:
        y = scaled(total, refs.of(number), out, scale)
        biased = "bias" in refs.given
        made.append(y + by_output(triton.load(refs.given["bias"].at[number, out]), y) if biased else y)
    return activate(mixture.activation, made[0], made[-1])


def _sizes(mixture: ExpertMatrices) -> tuple[int, int]:
    """An expert's own width, and that of x."""
    shape = mixture.gate_up.shape()
    return shape.outputs // mixture.activation.halves, shape.inputs


def _tile(shape: MixtureShape) -> tuple[int, int]:
    """Outputs and rows of a program where there are many rows: as many as registers hold beside widened weights."""
    kind, width, outputs = shape.down.kind, shape.down.inputs, shape.down.outputs
    wide = kind == "float" and width % WIDE_OUT == 0 and outputs % WIDE_OUT == 0
    return WIDE_OUT if wide else OUT, MOST_ROWS // 2 if kind in PACKED else MOST_ROWS


def _apart(mixture: ExpertMatrices) -> int | None:
    return _sizes(mixture)[0] if mixture.activation.halves == 2 else None


def _name(matrix: Matrix, slots: int, rows: int) -> str:
    """Says how much of the stack is read at most, which a census of kernels asks."""
    return f"{matrix.kind}_experts_{slots}_of_{matrix.leaves[0].shape[0]}_{rows}"
