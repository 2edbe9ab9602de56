"""A model in the layout that an engine of this host serves, in a folder of its own; knows files, imports no JAX.

The arrays are made by another process, with the settings and devices of an engine. The folder appears by one rename.
"""

import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from neuron_jax.errors import NeuronError
from neuron_jax.planning import Resolved
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.rest import write_rest
from neuron_jax.workers.child import run_child


class OutputExistsError(NeuronError):
    """There is something where the converted model would go, and nothing is overwritten."""


def convert(found: Resolved, out: Path, inherited: Mapping[str, str]) -> Generator[Mapping[str, Any]]:
    """{"phase", "done", "total", "unit"} as they come, then {"made": ..., "path": ...}.

    Raises OutputExistsError, and LoadError for a model that cannot be loaded.
    """
    if out.exists():
        raise OutputExistsError(f"{out} is there already; give a path where nothing is")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with open_checkpoint(Path(found.engine.path)) as checkpoint:
            write_rest(found.described, checkpoint.config, partial)
        options = {"folder": str(partial.absolute())}
        for record in run_child("neuron_jax.workers.convert", found.engine, options, inherited):
            yield record if "made" not in record else {**record, "path": str(out)}
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
