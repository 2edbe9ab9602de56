"""JAX as all tests of the neuron have it."""

import tests.fakes.strict_jax  # noqa: F401
