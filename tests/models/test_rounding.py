"""Rounded weights: errors within what the codes allow, the same whatever the chunks, and no weight that breaks it."""

from collections.abc import Callable

import numpy as np
import pytest

from models import rounding
from models.rounding import INT4, INT8, int4_by_group, int8_by_group
from models.storage import Blocks, Storage
from tests.fakes.weight_files import random_blocks

Quantizer = Callable[[np.ndarray | Blocks], Blocks]
BOTH = [int8_by_group, int4_by_group]
WEIGHT = np.random.default_rng(1).standard_normal((40, 96)).astype(np.float32)


def groups(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1, 32)


def test_int8_weights_are_within_half_a_step() -> None:
    """And the step is that of the largest weight of the group, but for the rounding of a half."""
    found = int8_by_group(WEIGHT)
    largest = np.abs(groups(WEIGHT)).max(axis=-1)

    assert found.storage == INT8
    assert (np.abs(groups(found.dequantize() - WEIGHT)) <= 0.5001 * found.scale[..., None]).all()
    assert ((largest / 127 <= found.scale) & (found.scale <= largest / 127 * (1 + 2**-10))).all()


def test_int4_weights_are_nearer_than_from_least_to_largest() -> None:
    """The search leaves at most 0.88 of the squared error that 16 even steps over a group's range leave."""
    found = int4_by_group(WEIGHT)
    least, largest = groups(WEIGHT).min(axis=-1, keepdims=True), groups(WEIGHT).max(axis=-1, keepdims=True)
    step = (largest - least) / 15
    plain = np.rint((groups(WEIGHT) - least) / step) * step + least
    error, plain_error = (
        np.square(groups(WEIGHT) - values).sum(axis=-1) for values in (groups(found.dequantize()), plain)
    )

    assert found.storage == INT4
    assert error.sum() < 0.88 * plain_error.sum()
    assert (error < 1.01 * plain_error).all()


def test_int4_weights_on_a_grid_are_found() -> None:
    """Sixteen even steps that halves can hold come out as they went in."""
    exact = random_blocks(INT4, 4)
    exact.codes[:, ::32], exact.codes[:, 1::32] = 0, 15
    np.abs(exact.scale, out=exact.scale)

    np.testing.assert_allclose(int4_by_group(exact).dequantize(), exact.dequantize(), atol=2e-3)


@pytest.mark.parametrize("quantizer", BOTH)
def test_codes_and_scales_are_what_the_storage_says(quantizer: Quantizer) -> None:
    """Codes use the whole of their range, and no more; scales and offsets are halves."""
    found = quantizer(WEIGHT)
    low, high = (0, 15) if found.storage.bits == 4 else (-127, 127)

    assert (found.codes.min(), found.codes.max()) == (low, high)
    for array in found.arrays[1:]:
        np.testing.assert_array_equal(array, array.astype(np.float16))


@pytest.mark.parametrize("quantizer", BOTH)
def test_groups_do_not_know_their_chunk(quantizer: Quantizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same codes row by row as all at once."""
    whole = quantizer(WEIGHT)
    monkeypatch.setattr(rounding, "CHUNK", 1)
    parts = quantizer(WEIGHT)

    for one, other in zip(whole.arrays, parts.arrays, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("columns", [1, 31, 33, 80])
@pytest.mark.parametrize("quantizer", BOTH)
def test_rows_need_not_be_whole_groups(quantizer: Quantizer, columns: int) -> None:
    """The last group of a row may be short; its weights are as near as the others'."""
    weight = WEIGHT[:, :columns]
    found = quantizer(weight)
    step = np.repeat(found.scale, 32, axis=1)[:, :columns]

    assert found.shape == weight.shape
    assert np.sqrt(np.mean(np.square((found.dequantize() - weight) / np.maximum(step, 1e-3)))) < 0.5


@pytest.mark.parametrize("quantizer", BOTH)
def test_blocks_are_rounded_as_their_floats(quantizer: Quantizer) -> None:
    """A model that is stored in blocks may be rounded again."""
    blocks = random_blocks(Storage(8, 16, offset=True), 7, 80)

    np.testing.assert_array_equal(quantizer(blocks).dequantize(), quantizer(blocks.dequantize()).dequantize())


@pytest.mark.parametrize("quantizer", BOTH)
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5, 1e-9, 6e4])
def test_groups_of_one_value_keep_it(quantizer: Quantizer, value: float) -> None:
    """Zeros stay zeros, a constant is kept to the precision of a half, and nothing is divided by nothing."""
    found = quantizer(np.full((2, 64), value, np.float32)).dequantize()

    np.testing.assert_allclose(found, value, rtol=2**-10, atol=1e-8)
    assert value or not found.any()
