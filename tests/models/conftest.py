"""JAX as all tests of models have it."""

import tests.fakes.strict_jax  # noqa: F401
