"""The process behind `neuron convert`: reads a model as an engine would, and writes its parameters as they lie on the devices.

Started by `neuron_jax.workers.child`. It tells {"phase", "done", "total", "unit"} as it goes, and last {"made": ...}.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from neuron_jax.workers.child import Tell, child_main
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.start import prepare


def work(spec: EngineSpec, options: Mapping[str, Any], tell: Tell) -> None:
    """Into the folder `options["folder"]`, which is there."""
    with prepare(spec) as ready:
        from models.sharding import make_mesh
        from neuron_jax.engine.build import refuses_native
        from neuron_jax.weights.converted import LayoutKey, describe_params
        from neuron_jax.weights.orbax_params import save_params
        from neuron_jax.weights.place import load_params

        def report(phase: str, done: int, total: int, unit: str) -> None:
            tell({"phase": phase, "done": done, "total": total, "unit": unit})

        design, folder = ready.made, Path(options["folder"])
        dtype = design.dtype.dtype.name
        made = LayoutKey(design.quant, dtype, spec.tensor_parallel, refuses_native(spec) is None, spec.expert_parallel)
        params = load_params(design.model, ready.checkpoint, make_mesh(ready.devices, spec.expert_parallel), report)
        report("write", 0, 1, "checkpoint")
        describe_params(folder, made, ready.checkpoint, save_params(params, folder))
        report("write", 1, 1, "checkpoint")
        tell({"made": attrs.asdict(made)})


if __name__ == "__main__":
    child_main(work)
