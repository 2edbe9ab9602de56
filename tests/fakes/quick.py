"""XLA compiling quickly rather than well, for programs whose speed and last bits are not the point. Knows options, no programs.

The program is the same down to XLA's own rewriting of it; what is left out is making good machine code of it, which takes
half of the time or more. Tests of bits, and those of the whole product, compile as the product does.
"""

from functools import partial
from typing import Any

import jax
from attrs import frozen

OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later ones have one way left to make code of fused operations, the slow one
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
ENVIRON = {"XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())}
"""The same for a child process."""

jit = partial(jax.jit, compiler_options=OPTIONS)


@frozen
class Quick:
    """A lowered program for `Compiler`."""

    lowered: jax.stages.Lowered

    def compile(self) -> Any:
        return self.lowered.compile(OPTIONS)
