"""All that a card is asked, stage after stage, each with its time: `make gpu`. Knows stages and files, must not import JAX.

    python -m bench.gpu [--shape tiny] [--json build/gpu.json] [--docs docs/benchmarks.md] [--minutes 8.5] [--only TEXT]

`--shape tiny` goes through all of it on a CPU, with a model of a few thousand weights: what it shows is that the script runs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import asdict

from bench.gpu import table
from bench.gpu.shapes import FORMATS, SHAPES, Asked
from bench.gpu.stage import Came, Stage, merged, python, run
from neuron_jax.hardware.discover import has_cuda_plugin
from neuron_jax.workers.process import engine_environment

# As neuron_jax.deviceless.topology has it, which imports JAX.
NO_DEVICE = {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}

UNMEASURED = {"copy": float("inf"), "matmul": float("inf"), "dtype": "bfloat16"}
"""Where the device's own stage failed: rates are still worth something, shares are 0."""


def main() -> None:
    given = _arguments()
    asked, began = SHAPES[given.shape], time.monotonic()
    deadline = began + 60 * given.minutes * asked.patience
    stages: list[Came] = []
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "shape": "Shapes of Llama 8B" if given.shape == "8b" else "A tiny Llama on a CPU: the figures mean nothing",
        "engines": {},
    }
    folder = Path(tempfile.mkdtemp(prefix="gpu."))
    environ = _environ(asked)

    def do(name: str, command: Sequence[str], seconds: float, *, plain: bool = False, env: Any = environ) -> Any:
        if given.only not in name:
            return {}
        came = run(Stage(name, tuple(command), seconds * asked.patience, env, plain), folder, deadline)
        stages.append(came)
        print(f"{name}: {came.problem or 'well'}, {came.seconds:.0f} s", flush=True)
        if came.problem or plain:
            print("    " + came.last.replace("\n", "\n    "), flush=True)
        return merged(came.records)

    shape, caches = ("--shape", given.shape), ("--cache", str(folder / "cache"))
    try:
        device = do("device", python("bench.gpu.start", "device", *shape), 60)
        report["device"] = device
        with ThreadPoolExecutor(1) as beside:
            name = device.get("name", "") if asked.platform == "cuda" else "h100"
            command = python("bench.gpu.predict", *shape, "--card", name)
            predicted = (
                beside.submit(do, "predicted", command, 150, env={**os.environ, **NO_DEVICE})
                if has_cuda_plugin()
                else None
            )
            do("kernels", python("pytest", *_tests()), 150, plain=True, env={**os.environ, **_SHARED})
            report["predicted"] = predicted.result() if predicted else {}
        limits = json.dumps(device.get("ceilings", UNMEASURED))
        where = ("--folder", str(folder / "model"))
        for quant in FORMATS:
            command = python("bench.gpu.engine", *shape, "--quant", quant, "--ceilings", limits, *caches)
            report["engines"][quant] = do(f"engine {quant}", command, 110)
            _keep(report, stages, given.json)
            if quant == FORMATS[0]:  # what is known least of all comes before what is measured in other formats again
                do("checkpoint", python("bench.gpu.start", "checkpoint", *shape, *where), 60)
                for name in ("start cold", "start warm"):
                    report[name] = do(name, python("bench.gpu.start", "start", *shape, *where, *caches), 120)
    finally:
        _keep(report, stages, given.json)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{table.text(report)}\nAll of it is in {given.json}; {time.monotonic() - began:.0f} s in all.")
    if given.docs:
        given.docs.write_text(table.written(given.docs.read_text(), report))
    sys.exit(any(one.problem for one in stages))


_SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
"""Several processes try kernels on one card."""


def _tests() -> list[str]:
    return ["-q", "-m", "gpu", "--numprocesses", str(min(6, os.cpu_count() or 1)), "tests/gpu"]


def _environ(asked: Asked) -> Mapping[str, str]:
    """Of a process with an engine; XLA computes everything on a CPU, as it would on a card but for our kernels."""
    return {**engine_environment(asked.spec("none"), os.environ), "CORTEX_NATIVE": "0"}


def _keep(report: dict[str, Any], stages: Sequence[Came], file: Path) -> None:
    """After every engine: whoever ends this has what there was."""
    told = [{name: value for name, value in asdict(one).items() if name != "records"} for one in stages]
    report["stages"] = told
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--json", type=Path, default=Path("build/gpu.json"))
    parser.add_argument("--docs", type=Path, help="a page whose tables are to be replaced")
    parser.add_argument(
        "--minutes", type=float, default=8.5, help="after which nothing is begun, and what runs is ended"
    )
    parser.add_argument("--only", default="", help="the stages with this in their name")
    return parser.parse_args()


if __name__ == "__main__":
    main()
