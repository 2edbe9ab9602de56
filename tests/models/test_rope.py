"""Rotary frequencies: the plain series, and what each scaling does to its ends."""

import jax.numpy as jnp
import numpy as np

from models import rope
from models.nn import rotary_table, rotate

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_plain_frequencies_are_the_geometric_series() -> None:
    """From 1 down to theta^(-(H-2)/H)."""
    np.testing.assert_allclose(rope.frequencies(8, 10000.0, {}), [1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_linear_scaling_divides_all() -> None:
    """Both spellings of the kind are read."""
    plain = rope.frequencies(8, 10000.0, {})
    for key in ("type", "rope_type"):
        np.testing.assert_allclose(rope.frequencies(8, 10000.0, {key: "linear", "factor": 4.0}), plain / 4)


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    """Fast pairs are untouched, slow ones divided by the factor, and the series stays falling."""
    plain = rope.frequencies(128, 500000.0, {})
    scaled = rope.frequencies(128, 500000.0, LLAMA3)

    np.testing.assert_allclose(scaled[:20], plain[:20])
    np.testing.assert_allclose(scaled[-20:], plain[-20:] / 8)
    assert (np.diff(scaled) < 0).all()


def test_factors_divide_each_frequency() -> None:
    """As GGUF files store Llama 3's scaling."""
    plain = rope.frequencies(4, 10000.0, {})
    found = rope.frequencies(4, 10000.0, {"rope_type": "factors", "factors": [1.0, 8.0]})

    np.testing.assert_allclose(found, plain / [1, 8])
    assert rope.misfits({"rope_type": "factors", "factors": [1.0]}, 4) == ["1 rope factors for 2 frequencies"]


def test_rotation_keeps_lengths_and_knows_only_distances() -> None:
    """q at m times k at n depends on m - n; norms stay."""
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def turned(x: jnp.ndarray, position: int) -> np.ndarray:
        table = rotary_table(jnp.array([position], jnp.int32), rope.frequencies(8, 10000.0, {}))
        return np.asarray(rotate(x, table)).ravel()

    np.testing.assert_allclose(turned(q, 9) @ turned(k, 4), turned(q, 105) @ turned(k, 100), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(turned(q, 77)), np.linalg.norm(np.asarray(q)), rtol=1e-5)
