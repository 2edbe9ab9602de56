"""A stage: a process of its own with so many seconds, whose lines of JSON count as far as it came; knows no JAX."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

Record = dict[str, Any]
LAST_WORDS = 2_000


@frozen
class Stage:
    """`command` gets `--out FILE` to append lines of JSON to, unless it is `plain`, and then its exit code tells all."""

    name: str
    command: tuple[str, ...]
    seconds: float
    environ: Mapping[str, str]
    plain: bool = False


@frozen
class Came:
    """What became of a stage: None for `problem` where it ended well; its `records` in any case, and its `last` words."""

    name: str
    seconds: float
    problem: str | None
    records: tuple[Record, ...]
    last: str


def python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def run(stage: Stage, folder: Path, deadline: float) -> Came:
    """Until it ends, its seconds have passed, or time.monotonic() is `deadline`: then it is killed with all that it started."""
    out, words = folder / f"{stage.name}.jsonl", folder / f"{stage.name}.log"
    out.touch()
    began = time.monotonic()
    seconds = min(stage.seconds, deadline - began)
    if seconds <= 0:
        return Came(stage.name, 0.0, "not begun: no time was left", (), "")
    command = stage.command if stage.plain else (*stage.command, "--out", str(out))
    with words.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=stage.environ, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            problem: str | None = f"took more than {seconds:.0f} s and was ended"
        else:
            problem = None if process.returncode == 0 else f"ended with {process.returncode}"
        finally:
            _end(process)
    return Came(stage.name, time.monotonic() - began, problem, read(out), _last(words))


def read(file: Path) -> tuple[Record, ...]:
    """The whole lines of a stage that may have been cut off."""
    found: list[Record] = []
    for line in file.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return tuple(found)


def merged(records: Sequence[Record]) -> Record:
    """What several records say together; lists go on."""
    found: Record = {}
    for record in records:
        for key, value in record.items():
            found[key] = found.get(key, []) + value if isinstance(value, list) else value
    return found


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last(words: Path) -> str:
    return words.read_text(errors="replace").strip()[-LAST_WORDS:]
