"""Kernels that came compiled, in the distribution cortex-jax-kernels: which of them this processor runs; must not know JAX.

One library for each level of processors, under a name that says of which sources it was made: those of another release
are never taken. XLA refuses by itself what was built for an interface that it no longer has.
"""

import hashlib
import importlib.util
import platform
from pathlib import Path

PACKAGE = "cortex_kernels"
SOURCES = Path(__file__).parent / "src"
_V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI = _V4 | {"avx512_vnni"}
_AMX = _VNNI | {"amx_tile", "amx_int8"}
LEVELS: dict[str, tuple[tuple[str, set[str]], ...]] = {
    "x86_64": (
        ("x86-64-v4+avx512vnni+amx-tile+amx-int8", _AMX),
        ("x86-64-v4+avx512vnni", _VNNI),
        ("x86-64-v4", _V4),
        ("x86-64-v3", _V3),
    ),
    "aarch64": (("armv8-a", set()),),
}
"""By machine, the best first: what -march calls the level and -m what it has besides, and what /proc/cpuinfo must list for it.

https://gitlab.com/x86-psABIs/x86-64-ABI, "micro-architecture levels"; cpuinfo calls LZCNT abm.
"""


def find() -> Path | None:
    """The best library that is installed, fits these sources and runs on this processor."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    return pick(folder, platform.machine(), set(processor().partition(":")[2].split()))


def pick(folder: Path, machine: str, features: set[str]) -> Path | None:
    """Of the libraries in `folder`, the one for a processor of this kind."""
    levels = (level for level, needs in LEVELS.get(machine, ()) if needs <= features)
    return next((path for path in (folder / name(level) for level in levels) if path.exists()), None)


def name(level: str) -> str:
    """What the library of these sources for a level is called."""
    return f"kernels-{level}-{digest()}.so"


def flags(level: str) -> list[str]:
    """Of a compiler, for a level."""
    march, *besides = level.split("+")
    return [f"-march={march}", *(f"-m{name}" for name in besides)]


def digest() -> str:
    """Of the sources, 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        whole.update(source.read_bytes())
    return whole.hexdigest()[:16]


def processor() -> str:
    """The line of /proc/cpuinfo that lists what the processor can do, else its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
