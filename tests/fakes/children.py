"""A child process that does as its options say, for tests of what runs in one."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.workers.child import Tell, child_main
from neuron_jax.workers.frames import EngineSpec


def work(spec: EngineSpec, options: Mapping[str, Any], tell: Tell) -> None:
    """Tells what it was given, then ends as `options["end"]` says."""
    tell({"model": spec.model_id, "devices": list(spec.devices), "waited": time.monotonic() - options["began"]})
    match options["end"]:
        case "named":
            raise bad_checkpoint("a file", ["a misfit"])
        case "unnamed":
            print("last words")
            raise RuntimeError("of a bug")
        case "killed":
            print("killed by itself")
            sys.stdout.flush()
            sys.exit(3)
        case "never":
            time.sleep(600)


if __name__ == "__main__":
    child_main(work)
