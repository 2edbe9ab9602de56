"""Every GGUF block format against the values of ggml's own Python package."""

from pathlib import Path

import numpy as np
import pytest

from neuron_jax.weights.blocks import FORMATS, decode

GOLDEN = Path(__file__).parents[2] / "data" / "gguf-blocks.npz"


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: FORMATS[kind].name)
def test_blocks_decode_as_in_ggml(kind: int) -> None:
    """Random blocks give the numbers that gguf.quants.dequantize gives."""
    with np.load(GOLDEN) as golden:
        raw, expected = golden[f"{kind}_raw"], golden[f"{kind}_values"]
    found = decode(FORMATS[kind], raw, expected.shape)

    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
