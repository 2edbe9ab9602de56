"""A real rank that cannot compile steps of several tokens each unless it is the leader."""

import jax

from neuron_jax.engine.buckets import Key, StepKey
from neuron_jax.engine.programs import Program
from neuron_jax.workers.engine_process import main

lower = Program.lower


def weak(self: Program, key: Key) -> jax.stages.Lowered:
    if jax.process_index() and isinstance(key, StepKey) and key.steps > 1:
        raise RuntimeError(f"INTERNAL: {key} is too much for this compiler")
    return lower(self, key)


if __name__ == "__main__":
    Program.lower = weak
    main()
