"""int8 products against float ones: errors within what rounding allows, rows independent of each other."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from models.products import by_parts, int8_matmul
from models.rounding import int8_by_channel

RNG = np.random.default_rng(3)
WEIGHT = RNG.standard_normal((48, 64)).astype(np.float32)
ROWS = RNG.standard_normal((5, 64)).astype(np.float32)


def test_weights_are_within_half_a_step() -> None:
    """values * scale is the weight to half a step of its own channel; a channel of zeros stays zero."""
    weight = WEIGHT.copy()
    weight[7] = 0
    values, scale = int8_by_channel(weight, 1)

    assert (values.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (48,))
    assert (np.abs(values * scale[:, None] - weight) <= 0.5001 * scale[:, None]).all()
    assert not values[7].any()


def test_several_dimensions_are_one_channel_axis() -> None:
    """Scales go over all in-dimensions together."""
    values, scale = int8_by_channel(WEIGHT.reshape(4, 12, 8, 8), 2)
    flat_values, flat_scale = int8_by_channel(WEIGHT, 1)

    np.testing.assert_array_equal(values.reshape(48, 64), flat_values)
    np.testing.assert_array_equal(scale.reshape(48), flat_scale)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_products_are_close_to_float(rows: int, fine: bool) -> None:
    """Against the same rounded weights only the activations' rounding is left; `fine` leaves almost none."""
    values, scale = int8_by_channel(WEIGHT, 1)
    x = ROWS[:rows]
    found = np.asarray(int8_matmul(jnp.asarray(x), jnp.asarray(values), jnp.asarray(scale), fine=fine))
    expected = x @ (values * scale[:, None]).T

    assert np.abs(found - expected).max() < (0.002 if fine else 0.2)


def test_fine_products_survive_outliers() -> None:
    """One input 500 times the others leaves them no step of int8; the second row keeps them."""
    x = ROWS.copy()
    x[:, 0] = 500
    values, scale = int8_by_channel(WEIGHT, 1)
    arguments = (jnp.asarray(x), jnp.asarray(values), jnp.asarray(scale))
    expected = x @ (values * scale[:, None]).T
    coarse, fine = (np.abs(np.asarray(int8_matmul(*arguments, fine=f)) - expected).max() for f in (False, True))

    assert coarse > 5
    assert fine < coarse / 20


@pytest.mark.parametrize("fine", [False, True])
def test_a_row_does_not_depend_on_its_batch(fine: bool) -> None:
    """The same row alone and beside others with huge values gives the same numbers."""
    values, scale = (jnp.asarray(part) for part in int8_by_channel(WEIGHT, 1))
    alone = int8_matmul(jnp.asarray(ROWS[:1]), values, scale, fine=fine)
    crowd = jnp.asarray(np.concatenate([ROWS[:1], ROWS[1:] * 1e4]))

    np.testing.assert_array_equal(np.asarray(int8_matmul(crowd, values, scale, fine=fine))[:1], np.asarray(alone))


def test_a_row_of_zeros_gives_zeros() -> None:
    """Padding rows divide by nothing."""
    values, scale = (jnp.asarray(part) for part in int8_by_channel(WEIGHT, 1))

    assert not np.asarray(int8_matmul(jnp.zeros((2, 64)), values, scale)).any()


def test_parts_are_rounded_by_themselves_and_add_up() -> None:
    """An input 500 times the others spoils the steps of its own part only."""
    x = ROWS.copy()
    x[:, 0] = 500
    values, scale = int8_by_channel(WEIGHT, 1)
    expected = x @ (values * scale[:, None]).T
    product = partial(int8_matmul, scale=jnp.asarray(scale))
    whole, halves, eighths = (by_parts(product, parts, jnp.asarray(x), jnp.asarray(values)) for parts in (1, 2, 8))
    each = [product(jnp.asarray(x[:, part]), jnp.asarray(values[:, part])) for part in (slice(32), slice(32, 64))]

    np.testing.assert_allclose(halves, each[0] + each[1], rtol=1e-6)
    assert np.abs(eighths - expected).max() < np.abs(whole - expected).max() / 2
