"""A child process for one job, with an engine's environment: a spec and options in, records out; must not know JAX.

The child reads one JSON object from its standard input and writes records, one JSON object a line, to `--fd N`. What it
and its libraries print is only shown when it fails.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from typing import IO, Any

import msgspec

from neuron_jax.errors import LoadError, NeuronError
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.process import engine_environment

Record = dict[str, Any]
Tell = Callable[[Record], None]
LAST_WORDS = 2_000
"""Characters of what a child printed that are shown when it fails."""


def run_child(
    module: str,
    spec: EngineSpec,
    options: Mapping[str, Any],
    inherited: Mapping[str, str],
    settings: Mapping[str, str] | None = None,
) -> Generator[Record]:
    """The records of `python -m module`, as they come. `options["began"]` is when the process was started; `settings` are
    variables that count before an engine's own.

    Raises LoadError for a failure that the child could name, NeuronError with its last words for any other. The process
    is gone when the iterator ends or is closed.
    """
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", module, "--fd", str(theirs)]
    env = {**engine_environment(spec, inherited), **(settings or {})}
    with os.fdopen(ours, encoding="utf-8") as records, tempfile.TemporaryFile() as words:
        given = {"spec": msgspec.to_builtins(spec), "options": {**options, "began": time.monotonic()}}
        try:
            process = subprocess.Popen(
                command, pass_fds=[theirs], stdin=subprocess.PIPE, stdout=words, stderr=words, env=env
            )
        finally:
            os.close(theirs)
        try:
            _send(process, given)
            yield from (_checked(json.loads(line)) for line in records)
            if process.wait() != 0:
                raise NeuronError(f"{module} ended with exit code {process.returncode}: {_tail(words)}")
        finally:
            process.kill()
            process.wait()


def child_main(work: Callable[[EngineSpec, Mapping[str, Any], Tell], None]) -> None:
    """The child's main: does `work`, telling records, and exits."""
    from neuron_jax.workers.start import failure

    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True, help="where the records go")
    given = json.load(sys.stdin)
    with os.fdopen(parser.parse_args().fd, "w", encoding="utf-8", buffering=1) as records:

        def tell(record: Record) -> None:
            records.write(json.dumps(record) + "\n")

        try:
            work(msgspec.convert(given["spec"], EngineSpec), given["options"], tell)
        except Exception as error:
            failed = failure(error)
            if failed.kind == "internal":
                raise
            tell({"failed": failed.kind, "message": failed.message})
    # A compilation in a background thread cannot be interrupted, and nobody is left to wait for it.
    os._exit(0)


def _send(process: "subprocess.Popen[bytes]", given: Record) -> None:
    assert process.stdin is not None
    # A child that cannot even start has closed its end; its last words say why.
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(given).encode())


def _checked(record: Record) -> Record:
    if "failed" in record:
        raise LoadError(record["failed"], record["message"])
    return record


def _tail(words: IO[bytes]) -> str:
    words.seek(0)
    return words.read().decode(errors="replace").strip()[-LAST_WORDS:]
