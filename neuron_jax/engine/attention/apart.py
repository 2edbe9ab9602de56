"""A kernel's trial in a process of its own, and what came of it, remembered. Knows files and processes, no arrays.

A kernel that reads where it must not leaves a CUDA context in which nothing works any more, and some compilers end the
process. What the trial found is kept beside the compile cache, by all that it may depend on.
"""

import hashlib
import json
import logging
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from attrs import asdict, evolve

from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case

log = logging.getLogger("neuron.engine")

COMMAND = (sys.executable, "-m", "neuron_jax.engine.attention.tried")
SECONDS = 180.0
"""A trial compiles four small programs after JAX has started, which takes some 20 s."""

DRIVER = Path("/proc/driver/nvidia/version")


def tried_apart(rung: str, case: Case) -> str | None:
    """Why the rung of this name will not do for a case of one kind of layer, tried on the case's first device for the heads
    that one device has; None when it does."""
    asked = asking(rung, case)
    kept = _kept(asked, case)
    if kept is not None and kept.exists():
        return _why(json.loads(kept.read_text()))
    try:
        done = subprocess.run(COMMAND, input=asked, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"its trial took more than {SECONDS:.0f} s"
    if done.returncode != 0:
        log.warning("attention %s: the process that tried it said: %s", rung, done.stderr[-4000:])
        return f"the process that tried it ended with {done.returncode}: {_last(done.stderr)}"
    said = json.loads(done.stdout.splitlines()[-1])
    if kept is not None and said["final"]:
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(f".{jax.process_index()}")
        beside.write_text(json.dumps(said))
        beside.replace(kept)
    return _why(said)


def asking(rung: str, case: Case) -> str:
    """A trial as a line of text."""
    (layer,) = case.layers
    alone = evolve(layer, kv_heads=layer.kv_heads // case.mesh.size)
    told = {
        "rung": rung,
        "platform": "cuda" if case.device.platform == "gpu" else case.device.platform,
        "device": getattr(case.device, "local_hardware_id", 0) or 0,
        "dtype": np.dtype(case.dtype).name,
        "kv": case.kv.name,
        "pages": case.pages,
        "page_size": case.page_size,
        "layer": asdict(alone),
    }
    return json.dumps(told, sort_keys=True)


def asked_for(text: str) -> tuple[str, Case]:
    """The rung's name, and the case on this process' own device."""
    told = json.loads(text)
    jax.config.update("jax_platforms", told["platform"])
    device = jax.local_devices()[told["device"]]
    mesh = make_mesh([device])
    kv, layer = KVFormat(told["kv"]), PagedLayer(**told["layer"])
    return told["rung"], Case(mesh, np.dtype(told["dtype"]), kv, told["pages"], told["page_size"], (layer,))


def _kept(asked: str, case: Case) -> Path | None:
    """Where the verdict is, or will be."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        return None
    told = json.loads(asked) | {"device": None, "pages": None}
    driver = DRIVER.read_text().splitlines()[0] if DRIVER.exists() else ""
    on = [driver, case.device.device_kind, str(case.capability), jax.__version__, version("jaxlib")]
    name = hashlib.sha256(json.dumps([told, on]).encode()).hexdigest()[:32]
    return Path(folder) / "attention" / f"{name}.json"


def _why(said: Any) -> str | None:
    why: str | None = said["why"]
    return why


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "without a word"
