"""A stage: what `neuron plan` predicts for the card, with the shapes and settings that are measured on it. Needs no device."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from msgspec import structs

from bench.gpu.shapes import FORMATS, SHAPES
from neuron_jax.hardware.cards import UnknownCardError, card
from neuron_jax.workers.process import CUDA_SHARE

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--card", required=True, help="as the driver calls it")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    os.nice(10)  # kernels are tried beside it
    with given.out.open("a", buffering=1) as out:
        try:
            one = card(given.card)
        except UnknownCardError as error:
            print(json.dumps({"refused": str(error)}), file=out)
            return
        for quant in FORMATS:
            print(json.dumps({quant: predicted(given.shape, one, quant)}), file=out)


def predicted(shape: str, one: Any, quant: str) -> dict[str, Any]:
    """The last word of `neuron plan --device`."""
    from neuron_jax.workers.compile_abroad import work

    asked = SHAPES[shape]
    spec = structs.replace(asked.spec(quant), platform="cuda", memory_mb=int(one.memory * CUDA_SHARE) // MIB)
    found: dict[str, Any] = {}
    work(spec, {"config": dict(asked.config), "card": one.key, "all": False}, found.update)
    return dict(found["predicted"])


if __name__ == "__main__":
    main()
