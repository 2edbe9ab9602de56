"""A GPU, or a skip. `make gpu` runs these, and measures the card."""

from collections.abc import Iterator
from typing import Any

import jax
import pytest

import tests.fakes.strict_jax  # noqa: F401


@pytest.fixture(autouse=True)
def gpu() -> Iterator[Any]:
    """The first NVIDIA GPU, on which everything in the test then runs."""
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError:
        pytest.skip("no NVIDIA GPU, or no JAX that can use it")
    with jax.default_device(device):
        yield device
