"""Every GGUF block format against the values of ggml's own Python package."""

from pathlib import Path

import numpy as np
import pytest

from models.native.unpacking import SIZES, unpacks
from models.storage import Blocks
from neuron_jax.weights import gguf_formats
from neuron_jax.weights.gguf_formats import FORMATS, unpack_into

GOLDEN = Path(__file__).parents[2] / "data" / "gguf-blocks.npz"
UNKNOWN = {41, 42}
"""Q1_0 and Q2_0, which the package does not know; tested apart."""
CODED = [kind for kind, block in FORMATS.items() if block.storage.coded and kind not in UNKNOWN]
FLOATS = [kind for kind, block in FORMATS.items() if not block.storage.coded]


def unpacked(kind: int) -> tuple[Blocks, np.ndarray]:
    """The reference's blocks, one to a row, and its values."""
    block = FORMATS[kind]
    with np.load(GOLDEN) as golden:
        raw, expected = golden[f"{kind}_raw"], golden[f"{kind}_values"]
    rows = expected.size // block.weights
    found = Blocks.zeros(rows, block.weights, block.storage)
    unpack_into(found, slice(rows), block, raw)
    return found, expected.reshape(rows, -1)


@pytest.mark.parametrize("kind", CODED, ids=lambda kind: FORMATS[kind].name)
def test_blocks_have_the_very_values_of_ggml(kind: int) -> None:
    """Random blocks give bit for bit the numbers that gguf.quants.dequantize gives."""
    found, expected = unpacked(kind)

    np.testing.assert_array_equal(found.dequantize(), expected)


@pytest.mark.parametrize("kind", CODED, ids=lambda kind: FORMATS[kind].name)
def test_blocks_keep_what_their_storage_promises(kind: int) -> None:
    """Codes in their bits, scales and offsets that are halves where it says so; and all of the range is used."""
    found, _ = unpacked(kind)
    low, high = (0, 15) if found.storage.bits == 4 else (-128, 127)

    assert low <= found.codes.min() < found.codes.max() <= high
    for array in found.arrays[1:]:
        assert not found.storage.half or np.array_equal(array, array.astype(np.float16))


@pytest.mark.skipif(unpacks() is None, reason="there are no native kernels here")
@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: FORMATS[kind].name)
def test_the_native_way_gives_the_same_bits(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any bytes, scales that are subnormal, infinite or no numbers included."""
    block = FORMATS[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (512, block.size), np.uint8)
    native, numpy = (Blocks.zeros(512, block.weights, block.storage) for _ in range(2))

    unpack_into(native, slice(512), block, raw)
    monkeypatch.setattr(gguf_formats, "unpacks", lambda: None)
    with np.errstate(all="ignore"):
        unpack_into(numpy, slice(512), block, raw)

    assert SIZES[kind] == block.size
    for ours, theirs in zip(native.arrays, numpy.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_not_known_natively_is_unpacked_all_the_same() -> None:
    """The function says so and touches nothing."""
    native = unpacks()
    codes, scale = np.zeros((1, 256), np.int8), np.zeros((1, 8), np.float32)

    assert native is None or not native(16, np.full(66, 255, np.uint8), codes, scale, None)
    assert not codes.any()


@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: FORMATS[kind].name)
def test_floats_lie_as_numpy_has_them(kind: int) -> None:
    """float32, float16 and bfloat16 need no unpacking: their bytes are the array."""
    with np.load(GOLDEN) as golden:
        raw, expected = golden[f"{kind}_raw"], golden[f"{kind}_values"]
    found = raw.reshape(-1).view(FORMATS[kind].storage.dtype).astype(np.float32)

    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize(("kind", "bits", "shift", "unit"), [(41, 1, 1, 2), (42, 2, 1, 1)], ids=["Q1_0", "Q2_0"])
def test_blocks_of_one_and_two_bits(kind: int, bits: int, shift: int, unit: int) -> None:
    """A bit is -d or d; two bits are -d, 0, d or 2 d, the lowest first (dequantize_row_q1_0 and q2_0 of ggml-quants.c)."""
    block = FORMATS[kind]
    rng = np.random.default_rng(kind)
    raw = rng.integers(0, 256, (5, block.size)).astype(np.uint8)
    d = rng.standard_normal(5).astype(np.float16)
    raw[:, :2] = d[:, None].view(np.uint8)
    found = Blocks.zeros(5, block.weights, block.storage)
    unpack_into(found, slice(5), block, raw)
    codes = np.array(
        [
            [int(row[2 + at * bits // 8]) >> at * bits % 8 & (1 << bits) - 1 for at in range(block.weights)]
            for row in raw
        ]
    )

    np.testing.assert_array_equal(found.dequantize(), (unit * codes - shift) * d.astype(np.float32)[:, None])
