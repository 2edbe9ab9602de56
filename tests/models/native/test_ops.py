"""The native kernels against numpy, and their promise: a row's bits do not depend on the rows beside it."""

from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from models.dense.record import Activation
from models.matrices import activate
from models.native import library, ops
from models.native.tiles import Tiles
from models.storage import BFLOAT16, FLOAT16, FLOAT32, Blocks, Storage

needs_kernels = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")

CODED = [
    Storage(bits, group, offset=offset, half=half)
    for bits in (4, 8)
    for group in (16, 32)
    for offset in (False, True)
    for half in (False, True)
]
STORAGES = [FLOAT32, FLOAT16, BFLOAT16, *CODED]


def matrix(rng: np.random.Generator, rows: int, columns: int, storage: Storage) -> Any:
    """Random values [rows, columns] that `storage` holds exactly."""
    if not storage.coded:
        return rng.standard_normal((rows, columns)).astype(storage.dtype)
    low, high = (0, 16) if storage.bits == 4 else (-128, 128)
    codes = rng.integers(low, high, (rows, columns)).astype(np.int8)
    groups = (rows, columns // storage.group)
    scale = rng.standard_normal(groups).astype(np.float16 if storage.half else ml_dtypes.bfloat16).astype(np.float32)
    return Blocks(codes, scale, scale[::-1] * 2 if storage.offset else None, storage)


def floats(values: Any) -> Any:
    return values.dequantize() if isinstance(values, Blocks) else values.astype(np.float32)


def rounded(x: np.ndarray, storage: Storage) -> np.ndarray:
    """x [T, K] as a product with codes has it: integers of 16 bits with a scale for every block of 32 columns, or fewer."""
    if not storage.coded:
        return x
    blocks = x.reshape(*x.shape[:-1], -1, gcd(storage.group, 32))
    top = np.abs(blocks).max(-1, keepdims=True)
    scale, by = top * np.float32(1 / 32767), np.float32(32767) / np.maximum(top, np.float32(1e-30))
    values = np.rint(blocks.astype(np.float64) * by) * scale
    return values.reshape(x.shape).astype(np.float32)


def packed(tiles: Tiles, values: Any) -> jax.Array:
    matrix = tiles.pack(values)
    assert matrix.shape == (tiles.nbytes,)
    assert matrix.dtype == np.uint8
    return jnp.asarray(matrix)


@needs_kernels
@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16, 29])
def test_linear_is_numpys_product(storage: Storage, rows: int) -> None:
    rng = np.random.default_rng(rows)
    values = matrix(rng, 83, 96, storage)
    tiles = Tiles.plan(83, 96, storage)
    x = rng.standard_normal((rows, 96)).astype(np.float32)
    found = ops.linear(jnp.asarray(x), tiles, packed(tiles, values))
    np.testing.assert_allclose(found, rounded(x, storage) @ floats(values).T, rtol=1e-5, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("storage", CODED, ids=str)
def test_rounding_is_of_no_more_than_it_says(storage: Storage) -> None:
    """Each x is off by half of a 32767th of its block's largest, whatever the sizes of others."""
    rng = np.random.default_rng(0)
    values, width = matrix(rng, 83, 96, storage), gcd(storage.group, 32)
    x = (rng.standard_normal((16, 96)) * np.exp(3 * rng.standard_normal((16, 96)))).astype(np.float32)
    x[3], x[4, :width] = 0, 1e-38
    tiles = Tiles.plan(83, 96, storage)
    found = ops.linear(jnp.asarray(x), tiles, packed(tiles, values))
    top = np.abs(x).reshape(16, -1, width).max(-1).repeat(width, axis=1)
    weights = np.abs(floats(values)).T.astype(np.float64)
    bound = top @ weights / 65534 + 1e-6 * (np.abs(x) @ weights)

    assert np.all(np.abs(found - x.astype(np.float64) @ floats(values).T) <= bound)
    assert np.all(found[3] == 0)


@needs_kernels
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 20])
def test_what_is_no_number_stays_none(wrong: float, rows: int) -> None:
    """An overflow must not end as a number that looks right; other rows have theirs."""
    values, tiles = matrix(np.random.default_rng(0), 32, 64, CODED[0]), Tiles.plan(32, 64, CODED[0])
    x = jnp.ones((rows, 64)).at[0, 40].set(wrong)
    found = ops.linear(x, tiles, packed(tiles, values))

    assert not np.isfinite(found[0]).any()
    assert np.isfinite(found[1:]).all()


@needs_kernels
@pytest.mark.parametrize("storage", [FLOAT32, BFLOAT16, Storage(4, 16, offset=True, half=True)], ids=str)
@pytest.mark.parametrize(("heads", "outputs"), [(3, 45), (5, 16), (2, 64)])
def test_each_head_has_a_matrix_of_its_own(storage: Storage, heads: int, outputs: int) -> None:
    """In widths that tiles divide and do not; a row's bits are its own."""
    rng = np.random.default_rng(heads)
    values = matrix(rng, heads * outputs, 48, storage)
    tiles = Tiles.plan(outputs, 48, storage, stack=heads)
    leaves, x = packed(tiles, values), rng.standard_normal((40, heads, 48)).astype(np.float32)
    rows = jnp.asarray(x.reshape(40, -1))
    alone = np.concatenate([ops.linear(rows[i : i + 1], tiles, leaves) for i in range(40)])
    wanted = np.einsum("thk,hnk->thn", rounded(x, storage), floats(values).reshape(heads, outputs, 48))
    np.testing.assert_allclose(alone.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-3)
    for count in (2, 7, 13, 40):
        assert np.array_equal(ops.linear(rows[:count], tiles, leaves), alone[:count]), count


@needs_kernels
def test_matrices_side_by_side_have_no_bias() -> None:
    tiles = Tiles.plan(32, 32, FLOAT32, stack=2)
    with pytest.raises(Exception, match="nothing around them"):
        jax.block_until_ready(
            ops.linear(jnp.zeros((1, 64)), tiles, jnp.zeros(tiles.nbytes, jnp.uint8), bias=jnp.zeros(64))
        )


@needs_kernels
@pytest.mark.parametrize("storage", [FLOAT32, Storage(4, 32, offset=True, half=True)], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_norm_residual_and_gate_are_part_of_it(storage: Storage, rows: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 64)).astype(np.float32)
    weight = rng.standard_normal(64).astype(np.float32)
    normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight
    norm = ops.Norm(jnp.asarray(weight), 1e-5)
    small = ops.Norm(jnp.asarray(weight / 50), 1e-5)
    values = matrix(rng, 2 * 45, 64, storage)
    exact = rounded(normed / 50, storage)
    gate, up = np.split(exact @ floats(values).T, 2, axis=1)
    tiles = Tiles.plan(90, 64, storage, gated=True)
    found = ops.linear(jnp.asarray(x), tiles, packed(tiles, values), norm=small)
    np.testing.assert_allclose(found, gate / (1 + np.exp(-gate)) * up, rtol=1e-4, atol=1e-3)
    tiles, residual = Tiles.plan(90, 64, storage), rng.standard_normal((rows, 90)).astype(np.float32)
    found = ops.linear(jnp.asarray(x), tiles, packed(tiles, values), residual=jnp.asarray(residual))
    np.testing.assert_allclose(found, rounded(x, storage) @ floats(values).T + residual, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(ops.normalize(jnp.asarray(x), norm), normed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.centre(jnp.asarray(x)), x - x.mean(-1, keepdims=True), rtol=0, atol=1e-5)


GATES = [ops.Gate(kind, limit) for kind in ("silu", "gelu", "gelu_tanh", "swiglu_oai") for limit in (None, 1.5)]


@needs_kernels
@pytest.mark.parametrize("gate", GATES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_every_gate_is_xlas(gate: ops.Gate, rows: int) -> None:
    """With biases, far out on either side, and in a width that no tile divides."""
    rng = np.random.default_rng(rows)
    values, bias = matrix(rng, 2 * 45, 64, FLOAT32), rng.standard_normal((2, 45)).astype(np.float32)
    x = (rng.standard_normal((rows, 64)) * np.geomspace(0.01, 10, rows)[:, None]).astype(np.float32)
    half, up = np.split(x @ values.T + bias.reshape(-1), 2, axis=1)
    kind: Any = gate.kind
    wanted = activate(Activation(kind, gate.limit), jnp.asarray(half), jnp.asarray(up))
    tiles = Tiles.plan(90, 64, FLOAT32, gated=True)
    found = ops.linear(jnp.asarray(x), tiles, packed(tiles, values), bias=jnp.asarray(bias), gate=gate)

    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5 * max(1, np.abs(wanted).max()))


@needs_kernels
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("residual", [False, True])
def test_bias_norm_and_residual_follow_a_product(rows: int, residual: bool) -> None:
    """In this order, in a width that no tile divides; what is behind `live` is left alone."""
    rng = np.random.default_rng(rows)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    values, bias, weight, x, left = matrix(rng, 83, 64, FLOAT32), draw(83), draw(83), draw(rows, 64), draw(rows, 83)
    y = x @ values.T + bias
    wanted = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * weight + (left if residual else 0)
    tiles = Tiles.plan(83, 64, FLOAT32)
    around: dict[str, Any] = {"bias": jnp.asarray(bias), "post_norm": ops.Norm(jnp.asarray(weight), 1e-5)}
    around |= {"residual": jnp.asarray(left)} if residual else {}
    found = ops.linear(jnp.asarray(x), tiles, packed(tiles, values), **around)
    alone = ops.linear(jnp.asarray(x), tiles, packed(tiles, values), **around, live=jnp.ones(1, jnp.int32))

    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)
    assert np.array_equal(alone[0], found[0])


@needs_kernels
def test_a_bias_of_another_size_is_an_error_not_a_crash() -> None:
    tiles = Tiles.plan(32, 64, FLOAT32)
    with pytest.raises(Exception, match="of other sizes"):
        jax.block_until_ready(
            ops.linear(jnp.zeros((1, 64)), tiles, jnp.zeros(tiles.nbytes, jnp.uint8), bias=jnp.zeros(31))
        )


@needs_kernels
@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_a_rows_bits_do_not_depend_on_its_neighbours(storage: Storage, gated: bool) -> None:
    rng = np.random.default_rng(0)
    tiles = Tiles.plan(192, 96, storage, gated=gated)
    leaves = packed(tiles, matrix(rng, 192, 96, storage))
    norm = ops.Norm(jnp.asarray(rng.standard_normal(96).astype(np.float32)), 1e-6)
    x = jnp.asarray(rng.standard_normal((60, 96)).astype(np.float32))
    weight, bias = (jnp.asarray(rng.standard_normal(width).astype(np.float32)) for width in (tiles.outputs, 192))
    around: dict[str, Any] = {"norm": norm, "bias": bias, "post_norm": ops.Norm(weight, 1e-6)}
    around["gate"] = ops.Gate("gelu_tanh", 2.0)
    alone = np.concatenate([ops.linear(x[i : i + 1], tiles, leaves, **around) for i in range(60)])
    for rows in (2, 3, 4, 5, 6, 8, 9, 12, 13, 16, 25, 60):
        assert np.array_equal(ops.linear(x[:rows], tiles, leaves, **around), alone[:rows]), rows


@needs_kernels
@pytest.mark.parametrize("live", [0, 1, 5, 9])
def test_what_is_not_live_is_not_computed(live: int) -> None:
    """Rows behind `live` may hold anything: NaN in, and tokens that no matrix has."""
    rng = np.random.default_rng(0)
    tiles = Tiles.plan(64, 64, FLOAT32)
    leaves = packed(tiles, matrix(rng, 64, 64, FLOAT32))
    x = jnp.asarray(rng.standard_normal((9, 64)).astype(np.float32)).at[live:].set(jnp.nan)
    tokens = jnp.full(9, 64, jnp.int32).at[:live].set(7)
    norm, some = ops.Norm(jnp.ones(64), 1e-6), jnp.asarray([live], jnp.int32)
    for found, whole in (
        (ops.linear(x, tiles, leaves, norm=norm, live=some), ops.linear(x, tiles, leaves, norm=norm)),
        (ops.normalize(x, norm, some), ops.normalize(x, norm)),
        (ops.centre(x, some), ops.centre(x)),
        (ops.rows(tokens, tiles, leaves, some), ops.rows(jnp.full(9, 7, jnp.int32), tiles, leaves)),
    ):
        assert np.array_equal(found[:live], whole[:live])


@needs_kernels
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_rows_are_looked_up_exactly(storage: Storage) -> None:
    rng = np.random.default_rng(0)
    values = matrix(rng, 70, 96, storage)
    tiles = Tiles.plan(70, 96, storage)
    tokens = jnp.asarray([0, 69, 31, 32, 33, 0], jnp.int32)
    assert np.array_equal(ops.rows(tokens, tiles, packed(tiles, values)), floats(values)[np.asarray(tokens)])


def test_groups_that_do_not_divide_become_float32() -> None:
    rng = np.random.default_rng(0)
    storage = Storage(8, 32, half=True)
    codes = rng.integers(-128, 128, (40, 80)).astype(np.int8)
    blocks = Blocks(codes, np.ones((40, 3), np.float32), None, storage)
    tiles = Tiles.plan(40, 80, storage)
    assert tiles.storage == FLOAT32
    first = tiles.pack(blocks).view(np.float32).reshape(2, 80, 32)[0]
    assert np.array_equal(first.T, codes[:32].astype(np.float32))


def test_groups_that_are_no_multiples_of_16_become_float32() -> None:
    assert Tiles.plan(40, 96, Storage(8, 8)).storage == FLOAT32
    assert Tiles.plan(40, 96, Storage(8, 24)).storage == FLOAT32
    assert Tiles.plan(40, 96, Storage(8, 48)).storage == Storage(8, 48)


@pytest.mark.parametrize("bits", [4, 8])
def test_four_codes_of_a_row_lie_together(bits: int) -> None:
    """In the order of their columns; of 4 bits those of a row and of the sixteenth after it share bytes."""
    storage = Storage(bits, 16)
    values = matrix(np.random.default_rng(0), 40, 48, storage)
    tiles = Tiles.plan(40, 48, storage)
    codes = tiles.pack(values)[: 2 * 32 * 48 * bits // 8].reshape(2, 12, -1, 4)
    for row, column in ((0, 0), (3, 5), (17, 47), (39, 18)):
        tile, inside = divmod(row, 32)
        found = codes[tile, column // 4, inside % codes.shape[2], column % 4]
        nibble = found >> 4 if inside >= 16 else found & 15
        assert values.codes[row, column] == (nibble if bits == 4 else found.view(np.int8)), (row, column)


@needs_kernels
def test_a_matrix_of_another_size_is_an_error_not_a_crash() -> None:
    tiles = Tiles.plan(32, 64, Storage(4, 32, offset=True, half=True))
    with pytest.raises(Exception, match="another size"):
        jax.block_until_ready(ops.rows(jnp.zeros(1, jnp.int32), tiles, jnp.zeros(tiles.nbytes - 1, jnp.uint8)))
    with pytest.raises(Exception, match="another size"):
        jax.block_until_ready(ops.linear(jnp.zeros((1, 64)), tiles, jnp.zeros(7, jnp.uint8)))


@needs_kernels
@pytest.mark.parametrize("token", [-1, 64])
def test_a_token_that_no_row_has_is_an_error_not_a_crash(token: int) -> None:
    tiles = Tiles.plan(40, 64, FLOAT32)
    with pytest.raises(Exception, match="no such row"):
        jax.block_until_ready(ops.rows(jnp.array([token], jnp.int32), tiles, jnp.zeros(tiles.nbytes, jnp.uint8)))
