"""int4 and fp8 products against float ones: what rounding allows and no more, rows independent of each other."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from models.products import (
    LARGEST_E8M0,
    fp8_matmul,
    int4_matmul,
    multiplies_fp8,
    mxfp4_halves,
    mxfp4_matmul,
    unpack_int4,
)
from models.rounding import fp8_by_channel, pack_int4
from models.storage import E2M1

RNG = np.random.default_rng(5)
OUT, IN = 48, 128
CODES = RNG.integers(0, 16, (OUT, IN)).astype(np.int8)
WEIGHT = RNG.standard_normal((OUT, IN)).astype(np.float32)
ROWS = RNG.standard_normal((5, IN)).astype(np.float32)


def blocks(group: int, *, offset: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Scales, offsets and the float64 values of CODES."""
    scale = RNG.uniform(0.01, 0.1, (OUT, IN // group)).astype(np.float32)
    low = RNG.standard_normal(scale.shape).astype(np.float32) if offset else None
    values = np.repeat(scale, group, 1).astype(np.float64) * CODES
    return scale, low, values if low is None else values + np.repeat(low, group, 1)


def as_jax(*arrays: np.ndarray | None) -> list[jax.Array | None]:
    return [None if array is None else jnp.asarray(array) for array in arrays]


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("group", [16, 32])
def test_int4_products_are_those_of_the_unpacked_values(group: int, offset: bool) -> None:
    scale, low, values = blocks(group, offset=offset)
    packed = pack_int4(CODES, group)
    found = int4_matmul(jnp.asarray(ROWS), *as_jax(packed, scale, low))

    assert (packed.shape, packed.dtype) == ((OUT, IN // 2), np.uint8)
    np.testing.assert_allclose(unpack_int4(*as_jax(packed, scale, low)), values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found, ROWS @ values.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_four_bit_floats_are_exact_but_for_the_sums(dtype: Any) -> None:
    """Every code by every scale that weights have: bfloat16 has all of their values."""
    codes = np.tile(np.arange(16, dtype=np.int8), (OUT, IN // 16))
    exponents = RNG.integers(0, LARGEST_E8M0 + 1, (OUT, IN // 32)).astype(np.uint8)
    exponents[:, 0] = np.clip(exponents[:, 0], 100, 140)
    values = E2M1[codes] * np.repeat(np.ldexp(np.float32(1), exponents.astype(np.int32) - 127), 32, 1)
    low, high = mxfp4_halves(*as_jax(pack_int4(codes, 32), exponents), dtype)
    both = np.stack([np.asarray(part, np.float32).reshape(OUT, -1, 16) for part in (low, high)], axis=2)
    near = (np.abs(values) > 2.0**-120) | (E2M1[codes] == 0)  # what is less, processors take for nothing

    np.testing.assert_array_equal(both.reshape(OUT, IN)[near], values[near])
    x, first = jnp.asarray(ROWS, dtype), np.s_[:, :32]
    found = mxfp4_matmul(x[first], *as_jax(pack_int4(codes[first], 32), exponents[:, :1]))
    np.testing.assert_allclose(found, np.asarray(x[first], np.float32) @ values[first].T, rtol=1e-4, atol=1e-30)


def test_int4_values_in_bfloat16_are_rounded_once() -> None:
    """Half a bfloat16 step of each weight and of each input is all that may be lost: the sums are float32."""
    scale, low, values = blocks(32, offset=True)
    x = jnp.asarray(ROWS).astype(jnp.bfloat16)
    found = int4_matmul(x, *as_jax(pack_int4(CODES, 32), scale, low))
    exact = np.asarray(x, np.float64)

    bound = np.abs(exact) @ np.abs(values).T * 2.0**-9 + 1e-4
    assert found.dtype == jnp.float32
    assert (np.abs(np.asarray(found) - exact @ values.T) <= bound).all()


def test_fp8_weights_are_within_a_sixteenth() -> None:
    """Three bits of mantissa; a channel's largest value is exact, and a channel of zeros stays zero."""
    weight = WEIGHT.copy()
    weight[7] = 0
    values, scale = fp8_by_channel(weight, 1)
    back = values.astype(np.float32) * scale[:, None]

    assert (values.dtype, scale.dtype, scale.shape) == (ml_dtypes.float8_e4m3fn, np.float32, (OUT,))
    assert (np.abs(back - weight) <= np.abs(weight) / 16 + scale[:, None] * 2.0**-10).all()
    np.testing.assert_allclose(np.abs(back).max(1), np.abs(weight).max(1), rtol=1e-6)
    assert not back[7].any()


def test_fp8_channels_may_have_several_dimensions() -> None:
    values, scale = fp8_by_channel(WEIGHT.reshape(4, 12, 8, 16), 2)
    flat_values, flat_scale = fp8_by_channel(WEIGHT, 1)

    np.testing.assert_array_equal(values.reshape(OUT, IN).view(np.uint8), flat_values.view(np.uint8))
    np.testing.assert_array_equal(scale.reshape(OUT), flat_scale)


def test_fp8_products_with_widened_weights_round_nothing_else() -> None:
    values, scale = fp8_by_channel(WEIGHT, 1)
    found = fp8_matmul(jnp.asarray(ROWS), jnp.asarray(values), jnp.asarray(scale), native=False)

    np.testing.assert_allclose(found, ROWS @ (values.astype(np.float32) * scale[:, None]).T, rtol=1e-5, atol=1e-4)


def test_fp8_products_round_inputs_by_their_own_row() -> None:
    """A sixteenth of each input at most, whatever stands in the rows beside it."""
    values, scale = (jnp.asarray(part) for part in fp8_by_channel(WEIGHT, 1))
    dense = np.asarray(values, np.float32) * np.asarray(scale)[:, None]
    x = ROWS * np.array([1, 1e4, 1e-4, 1, 1e8], np.float32)[:, None]
    found = np.asarray(fp8_matmul(jnp.asarray(x), values, scale, native=True))
    alone = fp8_matmul(jnp.asarray(x[:1]), values, scale, native=True)

    assert (np.abs(found - x @ dense.T) <= np.abs(x) @ np.abs(dense).T / 16 * 1.01).all()
    np.testing.assert_allclose(found[:1], alone, rtol=1e-5)


@pytest.mark.parametrize("native", [False, True])
def test_a_row_of_zeros_gives_zeros(native: bool) -> None:
    """Padding rows divide by nothing."""
    values, scale = (jnp.asarray(part) for part in fp8_by_channel(WEIGHT, 1))

    assert not np.asarray(fp8_matmul(jnp.zeros((2, IN)), values, scale, native=native)).any()


def test_float8_is_multiplied_where_the_device_can() -> None:
    def gpu(capability: str) -> SimpleNamespace:
        return SimpleNamespace(platform="gpu", compute_capability=capability)

    assert [multiplies_fp8(gpu(capability)) for capability in ("8.0", "8.9", "9.0", "12.0")] == [
        False,
        True,
        True,
        True,
    ]
    assert not multiplies_fp8(jax.devices("cpu")[0])
