"""What all tests share: strict JAX on eight fake CPU devices, and the demo's weights; must not know any part's doubles."""

import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings

from neuron_jax.config import cache_root
from neuron_jax.weights import sources

# The same examples in every run; how long one takes says nothing on a machine that others use too.
settings.register_profile("here", derandomize=True, deadline=None, database=None)
settings.load_profile("here")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's .gguf file in the user's cache; the first run on a machine downloads 93 MB."""
    return sources.fetch(sources.BuiltIn("smollm2-135m-instruct"), cache_root(os.environ) / "models", _silent)


def _silent(phase: str, done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""
