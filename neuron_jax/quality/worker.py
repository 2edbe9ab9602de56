"""The process behind `neuron quality`: one model after another, each in its own format; no HTTP, no terminal.

Started by `neuron_jax.quality.run`. It tells {"phase", "done", "total", "unit"} as it goes, and {"quality": ...} for each
format that was asked for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from neuron_jax.workers.child import Tell, child_main
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.start import configure

EXACT = "none"


def work(spec: EngineSpec, options: Mapping[str, Any], tell: Tell) -> None:
    """Float32 first, then every format of `options["quants"]`, or all there are, on the tokens `options["ids"]`."""
    configure(spec)
    import jax
    import jax.numpy as jnp

    from models.linears import NATIVE, XLA
    from models.native.library import unavailable
    from models.sharding import make_mesh
    from neuron_jax.quality.measure import Compared, Quality, compare, predictions, windows
    from neuron_jax.weights.checkpoint import open_checkpoint

    cut = windows(options["ids"], options["bos"])
    mesh = make_mesh(jax.devices(spec.platform)[:1])
    native = spec.platform == "cpu" and unavailable() is None
    served = jnp.float32 if spec.platform == "cpu" else jnp.bfloat16
    with open_checkpoint(Path(spec.path)) as checkpoint:
        with jax.default_matmul_precision("highest"):
            model, params = _load(checkpoint, EXACT, jnp.float32, mesh, tell, native=False)
            exact = list(predictions(model, params, cut))
        for quant in options["quants"] or (NATIVE if native else XLA):
            del model, params  # two models at once may be more than the memory holds
            model, params = _load(checkpoint, quant, served, mesh, tell, native=native)
            rows: list[Compared] = []
            for window, wanted, found in zip(cut, exact, predictions(model, params, cut), strict=True):
                rows.append(compare(wanted, found, window))
                tell({"phase": "measure", "done": len(rows), "total": len(cut), "unit": f"windows of {quant}"})
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
            tell({"quality": {"quant": quant, "weight_bytes": size, **attrs.asdict(Quality.of(rows))}})


def _load(checkpoint: Any, quant: str, dtype: Any, mesh: Any, tell: Tell, *, native: bool) -> tuple[Any, Any]:
    from models.registry import build
    from neuron_jax.weights.place import load_params

    def report(phase: str, done: int, total: int, unit: str) -> None:
        tell({"phase": phase, "done": done, "total": total, "unit": unit})

    model = build(checkpoint.config, quant=quant, dtype=dtype, native=native, storage=checkpoint.storage)
    return model, load_params(model, checkpoint, mesh, report)


if __name__ == "__main__":
    child_main(work)
