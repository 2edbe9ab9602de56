"""Matrices of codes: values by the formula, widening that loses nothing, joins that hold what they join."""

from itertools import product

import ml_dtypes
import numpy as np
import pytest

from models.storage import (
    BFLOAT16,
    E2M1,
    FLOAT16,
    FLOAT32,
    MXFP4,
    Blocks,
    Storage,
    exponents_of,
    storage_of,
    to_storage,
)
from tests.fakes.weight_files import random_blocks

CODED = [
    Storage(bits, group, offset, half)
    for bits, group, offset, half in product((4, 8), (16, 32), (False, True), (False, True))
]
CODED.append(MXFP4)
FLOATS = [FLOAT16, BFLOAT16, FLOAT32]


@pytest.mark.parametrize("columns", [64, 40, 5])
@pytest.mark.parametrize("storage", CODED, ids=str)
def test_values_follow_the_formula(storage: Storage, columns: int) -> None:
    """Each value on its own, rounded once from the exact one; the last group of a row may be short."""
    blocks = random_blocks(storage, columns=columns)
    values = blocks.dequantize()

    assert values.dtype == np.float32
    for n, k in np.ndindex(values.shape):
        offset = 0.0 if blocks.offset is None else float(blocks.offset[n, k // storage.group])
        code = blocks.codes[n, k]
        exact = float(blocks.scale[n, k // storage.group]) * float(E2M1[code] if storage.e2m1 else code) + offset
        assert values[n, k] == np.float32(exact)


@pytest.mark.parametrize(("one", "other"), list(product(CODED, CODED + FLOATS)), ids=str)
def test_a_join_holds_both(one: Storage, other: Storage) -> None:
    """Blocks widened to the join have the very values they had, whatever they are joined with."""
    joined = Storage.join(one, other)
    blocks = random_blocks(one)
    found = to_storage(blocks, joined)

    assert joined == Storage.join(other, one)
    values = found.dequantize() if isinstance(found, Blocks) else found
    np.testing.assert_array_equal(values, blocks.dequantize())
    assert not isinstance(found, Blocks) or found.storage == joined


def test_joins_are_as_narrow_as_can_be() -> None:
    """What two storages both have, the join has too."""
    assert Storage.join(Storage(4, 32, True, True)) == Storage(4, 32, True, True)
    assert Storage.join(Storage(4, 32, True, False), Storage(8, 16, False, False)) == Storage(8, 16, True, False)
    assert Storage.join(BFLOAT16, BFLOAT16) == BFLOAT16
    assert Storage.join(BFLOAT16, FLOAT16) == FLOAT32


@pytest.mark.parametrize(
    ("storage", "wanted"),
    [
        (Storage(8, 32), Storage(4, 32)),
        (Storage(8, 16), Storage(8, 32)),
        (Storage(4, 32, offset=True), Storage(4, 32)),
        (Storage(4, 32), Storage(4, 32, half=True)),
        (Storage(4, 32), BFLOAT16),
        (Storage(4, 32), MXFP4),
    ],
)
def test_narrowing_that_loses_is_our_bug(storage: Storage, wanted: Storage) -> None:
    """Fewer bits, wider groups, offsets or scale bits gone: nothing is rounded behind anybody's back."""
    with pytest.raises(AssertionError, match=r"exact|float16"):
        to_storage(random_blocks(storage), wanted)


def test_arrays_change_their_dtype_only_exactly() -> None:
    """Into float32 always, into bfloat16 where every value is one, into codes never."""
    third = np.array([[0.5, 1 / 3]], np.float32)
    exact = np.array([[0.5, -3.0]], np.float32)

    assert to_storage(exact, BFLOAT16).dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(to_storage(to_storage(exact, BFLOAT16), FLOAT32), exact)
    for storage in (BFLOAT16, FLOAT16, Storage(8, 32)):
        with pytest.raises(AssertionError):
            to_storage(third, storage)


def test_dtypes_and_storages_are_each_others() -> None:
    """The three float dtypes, there and back."""
    assert [storage_of(storage.dtype) for storage in FLOATS] == FLOATS
    assert not any(storage.coded for storage in FLOATS)


def test_bytes_count_codes_and_scales_in_their_own_bits() -> None:
    """Half a byte for a code of 4 bits, two bytes for a scale that is a half; groups are counted by row."""
    assert Storage(4, 32, offset=True, half=True).nbytes((2, 3, 64)) == 2 * 3 * (32 + 2 * 4)
    assert Storage(8, 16).nbytes((3, 40)) == 3 * (40 + 3 * 4)
    assert MXFP4.nbytes((2, 3, 64)) == 2 * 3 * (32 + 2)
    assert BFLOAT16.nbytes((3, 5)) == 30
    assert random_blocks(Storage(4, 32, offset=True)).nbytes == 6 * (64 + 2 * 2 * 4)


def test_rows_are_arranged_together() -> None:
    """Reversing rows reverses the values' rows."""
    blocks = random_blocks(Storage(4, 32, offset=True))
    turned = blocks.by_rows(lambda rows: rows[::-1])

    np.testing.assert_array_equal(turned.dequantize(), blocks.dequantize()[::-1])


def test_a_matrix_of_zeros_is_zero() -> None:
    """Places that nothing fills are exact zeros."""
    assert not Blocks.zeros(3, 40, Storage(4, 32, offset=True)).dequantize().any()


def test_floats_of_four_bits_are_what_their_specification_says() -> None:
    """A sign, two bits of exponent and one of fraction, and numbers without an exponent below 1."""
    for code, value in enumerate(E2M1):
        sign, exponent, fraction = (-1) ** (code >> 3), code >> 1 & 3, code & 1
        assert value == sign * (0.5 * fraction if exponent == 0 else (1 + fraction / 2) * 2 ** (exponent - 1))


def test_scales_that_are_powers_of_two_are_a_byte() -> None:
    """From the least on; zero, which groups have that nothing fills, is some."""
    bytes_ = np.arange(255, dtype=np.uint8)
    scale = np.ldexp(np.float32(1), bytes_.astype(np.int32) - 127)

    assert np.array_equal(exponents_of(scale), bytes_)
    assert exponents_of(np.zeros(1, np.float32)) < 240
    with pytest.raises(AssertionError, match="powers"):
        exponents_of(np.float32([0.75]))
