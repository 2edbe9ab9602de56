"""Kernels for the CPU behind `jax.ffi`, built on first use; knows arrays and tiles, must not know families or requests.

`library` builds and registers them, `tiles` lays matrices out for them, `ops` calls them from traced code. A model is
built with them only where `library.unavailable()` is None; everything they compute, XLA computes as well.
"""
