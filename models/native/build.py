"""Compiles the kernels with the machine's C++ compiler, once; must not know what they compute, or import JAX.

They are compiled for the very processor (`-march=native`), which a wheel could not do, and kept under a name that says of
what they were built: source, flags, compiler, processor and the XLA headers of the jaxlib that will call them. Where there
is no compiler, those that came compiled are taken (`prebuilt.py`).
"""

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from models.native import prebuilt

log = logging.getLogger("neuron.native")

SOURCES = prebuilt.SOURCES
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

BUILD_SECONDS = 900


class BuildError(Exception):
    """The kernels cannot be built here; the message says why."""


def here(folder: Path) -> Path:
    """A shared library that runs on this machine: built in `folder`, else one that came compiled. Raises BuildError."""
    try:
        return build(folder)
    except BuildError as error:
        found = prebuilt.find()
        if found is None:
            raise
        log.info("takes the kernels that came compiled, %s: %s", found.name, error)
        return found


def described(folder: Path) -> str:
    """In a few words, what `here` would take; builds nothing."""
    if os.environ.get(DISABLE) == "0":
        return f"none, {DISABLE}=0"
    try:
        compiler = _compiler()
    except BuildError as error:
        found = prebuilt.find()
        return f"prebuilt, {found.stem.removeprefix('kernels-')}" if found else f"none, {error}"
    made = built_path(folder, compiler).exists()
    return f"{'built' if made else 'to be built'} here by {Path(compiler).name}"


def build(folder: Path) -> Path:
    """The shared library in `folder`, compiled if it is not there yet. Raises BuildError."""
    compiler = _compiler()
    path = built_path(folder, compiler)
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    log.info("building the native kernels with %s (once)", compiler)
    # Under another name until it is whole: several processes may build at once, and one may be killed.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / path.name
        compile_all(compiler, FLAGS, made)
        made.replace(path)
    return path


def compile_all(compiler: str, flags: Sequence[str], library: Path, link: Sequence[str] = ()) -> None:
    """The sources into `library`, the objects beside it. Raises BuildError."""
    units = sorted(SOURCES.glob("*.cc"))
    objects = [str(library.with_name(f"{unit.stem}.o")) for unit in units]
    with ThreadPoolExecutor() as side_by_side:
        list(side_by_side.map(partial(_compile, compiler, flags), units, objects))
    _run([compiler, "-shared", "-pthread", *link, *objects, "-o", str(library)])


def _compile(compiler: str, flags: Sequence[str], unit: Path, made: str) -> None:
    _run([compiler, *flags, "-isystem", _headers(), "-c", str(unit), "-o", made])


def _headers() -> str:
    """XLA's, of the installed jaxlib: what `jax.ffi.include_dir()` says, without its import. Raises BuildError."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise BuildError("jaxlib, whose headers the kernels need, is not installed")
    return str(Path(spec.origin).parent / "include")


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


def built_path(folder: Path, compiler: str) -> Path:
    """Where `build` puts it: the name stands for everything that the result depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    # What the processor can do is part of it: a home folder may be shared by machines of several kinds.
    parts = [version, *FLAGS, importlib.metadata.version("jaxlib"), platform.machine(), prebuilt.processor()]
    digest = hashlib.sha256("\0".join([*parts, prebuilt.digest()]).encode())
    return folder / f"kernels-{digest.hexdigest()[:16]}.so"
