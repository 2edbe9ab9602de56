"""Starts the process that is measured and keeps what it reports; knows files and processes, must not know JAX."""

import importlib.util
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import attrs

from neuron_jax.benchmark.cases import Options
from neuron_jax.errors import NeuronError
from neuron_jax.hardware.records import Hardware
from neuron_jax.workers.child import Record, run_child
from neuron_jax.workers.frames import EngineSpec


class OutputError(NeuronError):
    """A file that was asked for could not be written; the message says why, before anything is measured."""


def check_outputs(json_file: Path | None, plot: Path | None) -> None:
    """Raises OutputError for what would fail after minutes of measuring."""
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise OutputError("--plot needs matplotlib, which is not installed: pip install 'cortex-jax[bench]'")
    for path in (json_file, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.absolute().parent}")


def run_bench(
    engine: EngineSpec, options: Options, hardware: Hardware, inherited: Mapping[str, str]
) -> Generator[Record]:
    """Records of progress, and last {"report": ...}."""
    given = {"cases": attrs.asdict(options), "machine": _machine(engine, hardware)}
    return run_child("neuron_jax.benchmark.worker", engine, given, inherited)


def write_outputs(report: Mapping[str, Any], json_file: Path | None, plot: Path | None) -> None:
    """The files that were asked for."""
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    if plot is not None:
        from neuron_jax.benchmark.plot import plot as draw

        draw(report, plot)


def _machine(engine: EngineSpec, hardware: Hardware) -> Record:
    names = {device.index: device.name for device in hardware.devices}
    return {
        "os": hardware.os,
        "kernel": hardware.kernel,
        "driver_version": hardware.driver_version,
        "devices": [names[index] for index in engine.devices],
        "cores": len(os.sched_getaffinity(0)),
    }
