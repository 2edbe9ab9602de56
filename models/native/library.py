"""Builds the kernels with the machine's C++ compiler, once, and registers them with JAX; must not know what they compute.

They are compiled for the very processor (`-march=native`), which a wheel could not do, and kept under a name that says of
what they were built: source, flags, compiler, processor and the XLA headers of the jaxlib that will call them.
"""

import ctypes
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import jax

log = logging.getLogger("neuron.native")

SOURCES = Path(__file__).parent / "src"
_NAMES = ("linear", "rows", "norm", "attention", "sample", "route", "gathered", "summed")
_RECURRENT = ("short_convolution", "gated_delta")
TARGETS = tuple(f"cortex_{name}" for name in (*_NAMES, *_RECURRENT))
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",  # a * b + c is fused everywhere, not only where an optimizer happens to see it
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-pthread",
    "-Wno-psabi",
)
DISABLE = "CORTEX_NATIVE"
"""Environment variable; `0` turns the kernels off."""

THREADS = "CORTEX_THREADS"
"""Environment variable; how many threads share a kernel's work, as many as there are processors without it."""

BUILD_SECONDS = 300


class BuildError(Exception):
    """The kernels cannot be built here; the message says why."""


@cache
def unavailable() -> str | None:
    """None when the kernels are registered and ready for `ops`; else why they are not. Builds them on the first call."""
    if os.environ.get(DISABLE) == "0":
        return f"{DISABLE}=0"
    try:
        library = ctypes.CDLL(str(build(cache_folder())))
        for name in TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (BuildError, OSError) as error:
        log.warning("no native kernels, XLA computes everything: %s", error)
        return str(error)
    return None


def threads() -> int:
    """How many share a kernel's work, the caller among them."""
    told = os.environ.get(THREADS, "")
    return int(told) if told.isdigit() and int(told) > 0 else len(os.sched_getaffinity(0))


def scratch_kept() -> int:
    """Bytes that the kernels of this process keep now to work in. Only where they are not `unavailable`."""
    count = ctypes.CDLL(str(build(cache_folder()))).cortex_scratch_kept
    count.restype = ctypes.c_int64
    return int(count())


def build(folder: Path) -> Path:
    """The shared library in `folder`, compiled if it is not there yet. Raises BuildError."""
    compiler = _compiler()
    path = folder / f"kernels-{_fingerprint(compiler)}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    log.info("building the native kernels with %s (once)", compiler)
    # Under another name until it is whole: several processes may build at once, and one may be killed.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        units = sorted(SOURCES.glob("*.cc"))
        objects = [str(Path(scratch) / f"{unit.stem}.o") for unit in units]
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(partial(_compile, compiler), units, objects))
        made = Path(scratch) / path.name
        _run([compiler, "-shared", "-pthread", *objects, "-o", str(made)])
        made.replace(path)
    return path


def _compile(compiler: str, unit: Path, made: str) -> None:
    _run([compiler, *FLAGS, "-isystem", jax.ffi.include_dir(), "-c", str(unit), "-o", made])


def _run(command: Sequence[str]) -> None:
    """Raises BuildError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-2000:]}")


def cache_folder() -> Path:
    """Where built kernels are kept: under XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cortex" / "native"


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    found = shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found is None:
        raise BuildError(f"no C++ compiler ({wanted or 'c++, g++ or clang++'} is not on PATH)")
    return found


def _fingerprint(compiler: str) -> str:
    """Of everything that the result depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [version, *FLAGS, importlib.metadata.version("jaxlib"), platform.machine(), _processor()]
    digest = hashlib.sha256("\0".join(parts).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What the processor can do: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def main() -> int:
    """Build the kernels ahead of their first use, and say so. Returns a process's exit status."""
    sys.stdout.write("building the CPU kernels ...\n")
    sys.stdout.flush()
    why = unavailable()
    if why is not None:
        sys.stdout.write(f"no CPU kernels, so models run several times slower on a CPU: {why}\n")
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main())
