"""Rotary frequencies: the plain series, and what each scaling does to its ends."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from models import rope
from models.config import Keys
from models.errors import ModelError
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


def test_what_yarn_needs_is_told() -> None:
    """By its key and value; a range that is empty mixes nothing."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

    assert rope.misfits({"rope_type": "yarn", "factor": 4.0}, 8) == [
        "rope scaling 'yarn' needs original_max_position_embeddings"
    ]
    assert rope.misfits(scaling | {"beta_fast": -1, "factor": "x"}, 8) == [
        "rope scaling factor is 'x', must be a positive number",
        "rope scaling beta_fast is -1, must be a positive number",
    ]
    assert np.isfinite(rope.frequencies(4, 10000.0, scaling | {"beta_fast": 1.0})).all()


@pytest.mark.parametrize(
    "more",
    [
        {
            "rope_theta": 1.0,
            "rope_parameters": {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 8},
        },
        {
            "rope_parameters": {
                "rope_type": "longrope",
                "factor": 2.0,
                "short_factor": [1.0] * 4,
                "original_max_position_embeddings": 1,
            }
        },
        {"rope_theta": 1e-300},
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 1e38,
                "original_max_position_embeddings": 32,
                "mscale": 1e38,
                "mscale_all_dim": 1e-30,
            }
        },
    ],
)
def test_what_gives_no_numbers_is_refused(more: dict[str, Any]) -> None:
    """Of values that are right one by one."""
    keys = Keys(more, "a model")
    rope.read_rotary(keys, 8)

    with pytest.raises(ModelError, match="frequencies that are no numbers"):
        keys.check()


def test_what_longrope_needs_is_told() -> None:
    """A divisor for each frequency."""
    scaling = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32}

    assert rope.misfits(scaling | {"short_factor": [1.0]}, 8) == ["1 rope factors for 4 frequencies"]
    assert rope.misfits(scaling | {"short_factor": [1.0] * 4}, 8) == []
