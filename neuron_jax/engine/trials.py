"""Tries kernels in a process of their own, and remembers the verdicts. Knows files and processes, no kernel and no array.

A kernel that reads where it must not leaves a CUDA context in which nothing works any more, and some compilers end the
process. Verdicts are kept beside the compile cache, by all that they may depend on.
"""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import jax
from attrs import Factory, asdict, frozen

import models
from models.traced import Traced

T = TypeVar("T")

log = logging.getLogger("neuron.engine")

COMMAND = (sys.executable, "-m", "neuron_jax.engine.trial_process")
READY = "ready"
"""What the process says first: whatever ends it before has nothing to do with a kernel."""

SECONDS = 180
"""For JAX to start, which takes some 20 s, and for each trial, which compiles a handful of small programs."""

DRIVER = Path("/proc/driver/nvidia/version")
SOURCES = (Path(models.__file__).parent, Path(__file__).parent)
"""Where kernels are, and what tries them."""


@frozen
class Trial:
    """`subject` is one of `trial_process.TRIALS`, which knows what to make of `asked`, values of JSON. `aside` is what else it
    has to be told, on which its verdict does not depend."""

    subject: str
    asked: Mapping[str, Any]
    aside: Mapping[str, Any] = Factory(dict)


@frozen
class Verdict:
    """`why`: what is wrong with the kernel; None where it will do. `rows`: of a product, up to how many it is right and no
    slower than XLA. One that is not `final` may be otherwise tomorrow."""

    why: str | None = None
    rows: int = 0
    final: bool = True


@frozen
class _Notes:
    """Trials that have still to be tried, and what was said meanwhile of what is chosen."""

    trials: list[Trial] = Factory(list)
    said: list[tuple[Any, ...]] = Factory(list)


_NOTES = Traced[_Notes]("trials that have still to be tried")
_KNOWN = Traced[Mapping[str, Verdict]]("verdicts on those that were tried together")


def together(choose: Callable[[], T], device: Any) -> T:
    """What `choose` gives by verdicts on all that it wants to have tried on `device`, which one process finds.

    Where not all are remembered it is called twice: those that are not are taken for good the first time. What it wants only
    then, since something else failed, is tried by itself.
    """
    notes = _Notes()
    with _NOTES.within(notes):
        chosen = choose()
    if not notes.trials:
        for line in notes.said:
            log.info(*line)
        return chosen
    verdicts = tried(notes.trials, device)
    with _KNOWN.within({_told(trial): verdict for trial, verdict in zip(notes.trials, verdicts, strict=True)}):
        return choose()


def say(*line: Any) -> None:
    """What was chosen, into the log, as `log.info` takes it; but for what is only so until its trial."""
    notes = _NOTES.get()
    if notes is None:
        log.info(*line)
    else:
        notes.said.append(line)


def tried(trials: Sequence[Trial], device: Any) -> list[Verdict]:
    """A verdict on each, tried on `device` where none is remembered. A kernel that ends the process costs itself alone: the
    others are tried in the next one. See `together`.
    """
    known, notes = _KNOWN.get() or {}, _NOTES.get()
    files = [_file(trial, device) for trial in trials]
    verdicts = [known.get(_told(trial)) or _remembered(file) for trial, file in zip(trials, files, strict=True)]
    rest = [number for number, verdict in enumerate(verdicts) if verdict is None]
    if notes is not None:
        notes.trials.extend(trials[number] for number in rest)
        return [verdict or Verdict() for verdict in verdicts]
    while rest:
        found = _apart([trials[number] for number in rest], device)
        for number, verdict in zip(rest, found, strict=False):
            verdicts[number] = verdict
            _remember(files[number], verdict)
        rest = rest[len(found) :]
    return [verdict for verdict in verdicts if verdict is not None]


def _told(trial: Trial) -> str:
    return json.dumps([trial.subject, dict(trial.asked), dict(trial.aside)], sort_keys=True)


def _apart(trials: Sequence[Trial], device: Any) -> list[Verdict]:
    """What one process finds: verdicts on all, or up to the one that ended it."""
    asked = {
        "platform": "cuda" if device.platform == "gpu" else device.platform,
        "device": getattr(device, "local_hardware_id", 0) or 0,
        "seconds": SECONDS,
        "trials": [[trial.subject, {**trial.asked, **trial.aside}] for trial in trials],
    }
    try:
        done = subprocess.run(
            COMMAND,
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS * (len(trials) + 1),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [Verdict(_slow(), final=False)] * len(trials)
    first, *lines = done.stdout.splitlines() or [""]
    found = [Verdict(**json.loads(line)) for line in lines]
    if len(found) < len(trials):
        ended = Verdict(_ending(done.returncode, done.stderr), final=False)
        found += [ended] * (1 if first == READY else len(trials))
    return found


def _ending(code: int, said: str) -> str:
    if code == -signal.SIGALRM:
        return _slow()
    log.warning("the process that tried a kernel said: %s", said[-4000:])
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"the process that tried it ended with {code}: {lines[-1][:200] if lines else 'without a word'}"


def _slow() -> str:
    return f"its trial took more than {SECONDS} s"


def _file(trial: Trial, device: Any) -> Path | None:
    """Where the verdict is, or will be; None where nothing is kept."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder:
        return None
    driver = DRIVER.read_text().splitlines()[0] if DRIVER.exists() else ""
    ours = [_sources(), jax.__version__, version("jaxlib")]
    on = [driver, device.device_kind, str(getattr(device, "compute_capability", ""))]
    name = hashlib.sha256(json.dumps([dict(trial.asked), ours, on], sort_keys=True).encode()).hexdigest()[:32]
    return Path(folder) / "trials" / f"{trial.subject}-{name}.json"


@cache
def _sources() -> str:
    """Other code is tried again."""
    digest = hashlib.sha256()
    for file in sorted(file for folder in SOURCES for file in folder.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _remembered(file: Path | None) -> Verdict | None:
    return Verdict(**json.loads(file.read_text())) if file is not None and file.exists() else None


def _remember(file: Path | None, verdict: Verdict) -> None:
    if file is None or not verdict.final:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(asdict(verdict)))
        beside.replace(file)
    except OSError as error:
        log.warning("what a trial found is not remembered: %s", error)
