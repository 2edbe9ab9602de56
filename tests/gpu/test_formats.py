"""int4 and fp8 products on a GPU: the same bounds as on a CPU, at the shapes of an 8B model."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.products import fp8_matmul, int4_matmul, multiplies_fp8
from models.rounding import fp8_by_channel, pack_int4

pytestmark = pytest.mark.gpu

OUT, IN, GROUP = 1024, 4096, 32
RNG = np.random.default_rng(6)


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_int4_products(rows: int) -> None:
    codes = RNG.integers(0, 16, (OUT, IN))
    scale = RNG.uniform(0.01, 0.1, (OUT, IN // GROUP)).astype(np.float32)
    x = jnp.asarray(RNG.standard_normal((rows, IN)), jnp.bfloat16)
    offset = -8 * scale
    found = jax.jit(int4_matmul)(x, *(jnp.asarray(part) for part in (pack_int4(codes, GROUP), scale, offset)))
    values, exact = np.repeat(scale, GROUP, 1) * (codes - 8.0), np.asarray(x, np.float64)

    assert (np.abs(np.asarray(found) - exact @ values.T) <= np.abs(exact) @ np.abs(values).T * 2.0**-8 + 1e-2).all()


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_fp8_products(gpu: Any, rows: int) -> None:
    weight = RNG.standard_normal((OUT, IN)).astype(np.float32)
    values, scale = fp8_by_channel(weight, 1)
    x = jnp.asarray(RNG.standard_normal((rows, IN)), jnp.bfloat16)
    native = multiplies_fp8(gpu)
    step = jax.jit(lambda x, values, scale: fp8_matmul(x, values, scale, native=native))
    found = step(x, jnp.asarray(values), jnp.asarray(scale))
    exact, dense = np.asarray(x, np.float64), values.astype(np.float64) * scale[:, None]

    assert (np.abs(np.asarray(found) - exact @ dense.T) <= np.abs(exact) @ np.abs(dense).T / 14).all()
