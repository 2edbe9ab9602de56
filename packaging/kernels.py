"""Compiles the CPU kernels for levels of processors and writes them as the wheel cortex-jax-kernels, one per machine.

`kernels.py OUT [MACHINE...]` with the machines x86_64 and aarch64; another than this one needs Debian's cross compiler. The
headers are those of the installed jaxlib: take the oldest that is supported, later ones call what was built for it.
"""

import base64
import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from models.native import build, prebuilt  # noqa: E402 -- of this very tree

DISTRIBUTION = "cortex_jax_kernels"
# No library of the C++ compiler is asked of the host, only its C library.
LINK = ("-static-libstdc++", "-static-libgcc", "-Wl,--build-id=none", "-Wl,-s")
MIDNIGHT = (2020, 2, 2, 0, 0, 0)
METADATA = """Metadata-Version: 2.4
Name: cortex-jax-kernels
Version: {version}
Summary: The CPU kernels of cortex-jax, compiled: for hosts without a C++ compiler.
License-Expression: GPL-3.0-only
License-File: LICENSE
Requires-Python: >=3.11
Description-Content-Type: text/plain

Install it beside cortex-jax of the same version. A host that has a compiler builds its own.
"""


def main() -> int:
    out, machines = Path(sys.argv[1]), sys.argv[2:] or [platform.machine()]
    out.mkdir(parents=True, exist_ok=True)
    for machine in machines:
        sys.stdout.write(f"{wheel(out, machine)}\n")
    return 0


def wheel(out: Path, machine: str) -> Path:
    """The wheel of this machine's levels; the same bytes each time."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory() as scratch:
        made = [compiled(Path(scratch), machine, level) for level, _ in prebuilt.LEVELS[machine]]
        tag = f"py3-none-manylinux_2_{max(map(glibc, made))}_{machine}"
        files = {f"{prebuilt.PACKAGE}/{path.name}": path.read_bytes() for path in made}
    files[f"{prebuilt.PACKAGE}/__init__.py"] = b'"""CPU kernels of cortex-jax, for models/native/prebuilt.py."""\n'
    info = f"{DISTRIBUTION}-{version}.dist-info"
    files[f"{info}/METADATA"] = METADATA.format(version=version).encode()
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: cortex\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[f"{info}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
    files[f"{info}/RECORD"] = record(files, f"{info}/RECORD")
    path = out / f"{DISTRIBUTION}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items(), key=lambda file: (".dist-info/" in file[0], file[0])):
            entry = zipfile.ZipInfo(name, MIDNIGHT)
            entry.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def compiled(folder: Path, machine: str, level: str) -> Path:
    """The library for one level."""
    path = folder / prebuilt.name(level)
    compiler = "g++" if machine == platform.machine() else f"{machine}-linux-gnu-g++"
    flags = [*(flag for flag in build.FLAGS if not flag.startswith("-march")), *prebuilt.flags(level)]
    os.environ["LC_ALL"] = "C"
    build.compile_all(compiler, [*flags, f"-ffile-prefix-map={ROOT}=."], path, LINK)
    return path


def glibc(path: Path) -> int:
    """The x of the GLIBC_2.x that a library asks for: the oldest C library that it runs with."""
    shown = subprocess.run(
        ["readelf", "--wide", "--version-info", str(path)], check=True, capture_output=True, text=True
    )
    return max(int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", shown.stdout))


def record(files: dict[str, bytes], itself: str) -> bytes:
    """The list of the files with their hashes, as a wheel has it."""
    lines = []
    for name, content in sorted(files.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}\n")
    return "".join([*lines, f"{itself},,\n"]).encode()


if __name__ == "__main__":
    sys.exit(main())
