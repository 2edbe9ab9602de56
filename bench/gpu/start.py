"""Stages around the engine: what the device can do at most, a checkpoint of random weights, and an engine's start from it."""

import argparse
import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.gpu.shapes import SHAPES, Asked

BLOCK = 1 << 26
"""Bytes of random weights, again and again."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("device", "checkpoint", "start"))
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cache", default="")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    asked = SHAPES[given.shape]
    match given.what:
        case "device":
            record = device(asked)
        case "checkpoint":
            record = {"bytes": write(given.folder, asked.config)}
        case _:
            record = start(asked, given.folder, given.cache)
    with given.out.open("a") as out:
        print(json.dumps(record), file=out)


def device(asked: Asked) -> dict[str, Any]:
    """Its name, and what copying and multiplying reach on it."""
    import attrs
    import jax

    from neuron_jax.benchmark.ceilings import measure
    from neuron_jax.workers.start import configure

    configure(asked.spec("none"))
    one = jax.devices(asked.platform)[0]
    dtype = "float32" if asked.platform == "cpu" else "bfloat16"
    first, second = (measure(one, dtype) for _ in range(2))
    best = attrs.evolve(first, copy=max(first.copy, second.copy), matmul=max(first.matmul, second.matmul))
    return {"name": one.device_kind, "jax": jax.__version__, "ceilings": attrs.asdict(best)}


def start(asked: Asked, folder: Path, cache: str) -> dict[str, Any]:
    """Seconds from the beginning of this process' work to an engine that serves, by phase, and bytes of weights a second."""
    began = time.monotonic()
    from neuron_jax.workers.start import start as begin

    started = begin(asked.spec("none", str(folder), cache), lambda _: None)
    ready, seconds = time.monotonic() - began, dict(started.seconds)
    size = (folder / "model.safetensors").stat().st_size
    return {"ready_seconds": ready, "phases": seconds, "load_rate": size / seconds["weights"]}


def write(folder: Path, config: Mapping[str, Any]) -> int:
    """config.json and model.safetensors of random bfloat16 weights under Hugging Face names; how many bytes that is."""
    import ml_dtypes
    import numpy as np

    from tests.fakes.tiny_llama import hf_shapes

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in hf_shapes(dict(config)).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    values = np.random.default_rng(0).standard_normal(min(BLOCK, end) // 2, np.float32) * 0.02
    block, head = memoryview(values.astype(ml_dtypes.bfloat16).tobytes()), json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for at in range(0, end, len(block)):
            file.write(block[: min(len(block), end - at)])
    return end


if __name__ == "__main__":
    main()
