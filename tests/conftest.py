"""What all tests share: the demo's weights; must not know any part's doubles, nor JAX, which the gateway has not."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings

from neuron_jax.config import cache_root
from neuron_jax.weights import sources

# The same examples in every run; how long one takes says nothing on a machine that others use too.
settings.register_profile("here", derandomize=True, deadline=None, database=None)
settings.load_profile("here")


def pytest_collection_finish() -> None:
    """Leave what is there for good to nobody's search for garbage: eight thousand tests and JAX are half a million objects,
    and a seventh of the tests' processor time went into looking through them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's .gguf file in the user's cache; the first run on a machine downloads 93 MB."""
    return sources.fetch(sources.BuiltIn("smollm2-135m-instruct"), cache_root(os.environ) / "models", _silent)


def _silent(phase: str, done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""
