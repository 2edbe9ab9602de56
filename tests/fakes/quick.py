"""XLA compiling quickly rather than well, for programs whose speed and last bits are not the point. Knows options, no programs.

The program is the same down to XLA's own rewriting of it; what is left out is making good machine code of it, and by many
threads, which takes half of the time or more. Tests of bits, and those of the whole product, compile as the product does.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from attrs import frozen

OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
SERVED: dict[str, Any] = {"xla_backend_optimization_level": 3, "xla_cpu_parallel_codegen_split_count": 32}
"""What XLA does by itself, for what is tried as it is served while the process compiles quickly."""
if jax.__version_info__ < (0, 11):  # later ones have one way left to make code of fused operations, the slow one
    OPTIONS["xla_cpu_use_fusion_emitters"] = False
    SERVED["xla_cpu_use_fusion_emitters"] = True
ENVIRON = {"XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())}
"""The same for a child process."""

jit = partial(jax.jit, compiler_options=OPTIONS)


@frozen
class Quick:
    """A lowered program for `Compiler`."""

    lowered: jax.stages.Lowered

    def compile(self) -> Any:
        return self.lowered.compile(OPTIONS)


@frozen
class Served:
    """The same, compiled as the product compiles it."""

    lowered: jax.stages.Lowered

    def compile(self) -> Any:
        return self.lowered.compile(SERVED)


def served(lower: Callable[[Any], jax.stages.Lowered]) -> Callable[[Any], Any]:
    """`lower`, for a `Compiler` whose programs are to be those of the product."""
    return lambda key: Served(lower(key))


def compile_here() -> None:
    """From now on XLA compiles quickly in this process, for whoever says nothing else; what it starts is told nothing."""
    kept = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = " ".join(filter(None, (kept, ENVIRON["XLA_FLAGS"])))
    jax.jit(lambda: 0).lower().compile()  # XLA reads its flags once, with the first program
    if kept is None:
        del os.environ["XLA_FLAGS"]
    else:
        os.environ["XLA_FLAGS"] = kept
