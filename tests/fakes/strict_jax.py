"""JAX for tests in this process, set up by being imported before it is used: strict, quick, eight CPU devices that are one."""

import jax

from tests.fakes import quick

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
quick.compile_here()
