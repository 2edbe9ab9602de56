"""Lays out what the packages cortex and cortex-neuron install, each below a folder of its own: for rpmbuild and debhelper.

`stage.py --wheels FOLDER --out FOLDER [--units lib/systemd/system]`, run by the Python that the packages will depend on.
Needs no network: FOLDER has the wheels of the lock, of cortex-jax and of cortex-jax-kernels. Both packages share a private
environment, /usr/lib/cortex; cortex-neuron adds what computes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
HOME = "usr/lib/cortex"
"""The private environment, below / of the host."""

GENERATIONS = ("ampere", "ada", "hopper", "blackwell")
PROGRAMS = {"cortex": "cortex", "neuron": "cortex-neuron"}
"""What a host may start, and the package that brings it."""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--units", default="usr/lib/systemd/system")
    asked = parser.parse_args()
    out = asked.out.absolute()
    gateway, neuron = out / "cortex", out / "cortex-neuron"
    environment(gateway / HOME, asked.wheels.absolute(), out)
    computes = add_neuron(gateway / HOME, asked.wheels.absolute(), out)
    finish(gateway / HOME)
    for path in computes | {Path("bin/neuron")}:
        move(gateway / HOME / path, neuron / HOME / path)
    for program, package in PROGRAMS.items():
        system_files(out / package, program, asked.units)
    for generation in GENERATIONS:
        put(HERE / "gpu" / f"{generation}.conf", out / f"cortex-neuron-{generation}" / HOME / "gpu")
    gpu_files(neuron)
    for package in (gateway, neuron):
        module_modes(package)
        compile_modules(package)
    return 0


def environment(home: Path, wheels: Path, out: Path) -> None:
    """A virtual environment with the gateway in it."""
    venv.EnvBuilder(symlinks=True, with_pip=False).create(home)
    install(home, wheels, lock(out, None))
    ours = max(wheels.glob("cortex_jax-*.whl"))
    pip(home, wheels, "--no-deps", str(ours))


def add_neuron(home: Path, wheels: Path, out: Path) -> set[Path]:
    """What computes; returns the files that this adds, relative to the environment."""
    before = files(home)
    install(home, wheels, lock(out, "neuron"))
    kernels = sorted(wheels.glob("cortex_jax_kernels-*.whl"))
    pip(home, wheels, "--no-deps", *map(str, kernels[-1:])) if kernels else None
    return {path for path in files(home) - before if path.parts[0] != "bin"}


def lock(out: Path, extra: str | None) -> Path:
    """The part of the lock that `extra` needs, written into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{extra or 'gateway'}.lock"
    command = [sys.executable, str(HERE / "lock.py"), *([extra] if extra else [])]
    path.write_text(run(command, stdin=(ROOT / "requirements.lock").read_text()))
    return path


def install(home: Path, wheels: Path, requirements: Path) -> None:
    pip(home, wheels, "--no-deps", "--require-hashes", "--requirement", str(requirements))


def pip(home: Path, wheels: Path, *words: str) -> None:
    """From `wheels` and from nowhere else."""
    isolated = ["--isolated", "--python", str(home / "bin/python"), "--disable-pip-version-check", "install"]
    offline = ["--quiet", "--no-index", "--no-compile", "--no-warn-script-location", "--only-binary", ":all:"]
    run([sys.executable, "-m", "pip", *isolated, *offline, "--find-links", str(wheels), *words])


def run(command: list[str], stdin: str | None = None) -> str:
    return subprocess.run(command, input=stdin, check=True, stdout=subprocess.PIPE, text=True).stdout


def files(folder: Path) -> set[Path]:
    """All files and links below it, relative to it."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    return {path for path in found if path.parts[0] != "lib64"}


def finish(home: Path) -> None:
    """Nothing in it may say where it was made; of its programs, ours and Python stay."""
    for path in (home / "bin").iterdir():
        if not path.name.startswith("python") and path.name not in PROGRAMS:
            path.unlink()
    for program in PROGRAMS:
        path = home / "bin" / program
        path.write_text(re.sub(r"\A#!.*", f"#!/{HOME}/bin/python3", path.read_text()))
    settings = home / "pyvenv.cfg"
    kept = [line for line in settings.read_text().splitlines() if not line.startswith(("command", "executable"))]
    settings.write_text("\n".join(kept) + "\n")
    for path in site_packages(home).glob("*.dist-info/direct_url.json"):
        path.unlink()
    # Of the host's CUDA wheels, which `neuron-cuda install` puts there: an absent folder is no path.
    (site_packages(home) / "cuda.pth").write_text("../../../cuda\n")
    shutil.rmtree(home / "include", ignore_errors=True)


def site_packages(home: Path) -> Path:
    return next((home / "lib").glob("python3.*")) / "site-packages"


def move(source: Path, target: Path) -> None:
    """A file from one package's tree to the other's; folders that it leaves empty go."""
    if not source.exists() and not source.is_symlink():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    folder = source.parent
    while not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def system_files(root: Path, program: str, units: str) -> None:
    """The command, the unit, the user, the folders, the firewall's service and the configuration."""
    command = root / "usr/bin" / program
    command.parent.mkdir(parents=True, exist_ok=True)
    command.symlink_to(f"../lib/cortex/bin/{program}")
    put(HERE / "systemd" / f"{program}.service", root / units)
    put(HERE / "systemd" / f"{program}.sysusers", root / "usr/lib/sysusers.d", f"{program}.conf")
    put(HERE / "systemd" / f"{program}.tmpfiles", root / "usr/lib/tmpfiles.d", f"{program}.conf")
    put(HERE / "firewalld" / f"{program}.xml", root / "usr/lib/firewalld/services")
    put(HERE / "config" / f"{program}.toml", root / "etc" / program, mode=0o640)
    for path in (ROOT / "examples").glob(f"{'[cm]' if program == 'cortex' else '[n]'}*.toml"):
        put(path, root / "usr/share/doc" / root.name / "examples")


def gpu_files(neuron: Path) -> None:
    """What fetches the CUDA wheels, and which they are."""
    target = put(HERE / "gpu" / "neuron-cuda", neuron / "usr/sbin", mode=0o755)
    assert target.exists()
    whole = (ROOT / "requirements-cuda12.lock").read_text()
    wanted = run([sys.executable, str(HERE / "lock.py"), "neuron"], stdin=whole)
    cpu = run([sys.executable, str(HERE / "lock.py"), "neuron"], stdin=(ROOT / "requirements.lock").read_text())
    pins = re.findall(r"^\S+==[^\n]*(?:\n[ ][^\n]*)*", wanted, re.MULTILINE)
    path = neuron / HOME / "gpu" / "cuda12.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{pin}\n" for pin in pins if pin.split("==")[0] not in cpu))


def put(source: Path, folder: Path, name: str = "", mode: int = 0o644) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (name or source.name)
    shutil.copyfile(source, target)
    target.chmod(mode)
    return target


def module_modes(root: Path) -> None:
    """Modules that some wheels call programs are none."""
    for path in (root / HOME / "lib").rglob("*.py"):
        if path.stat().st_mode & 0o111 and not path.read_bytes().startswith(b"#!"):
            path.chmod(0o644)


def compile_modules(root: Path) -> None:
    """Bytecode that Python never checks against its source: a service may not write it, and the same comes out each time."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "-s", str(root), "-p", "/"]
    environ = os.environ | {"PYTHONHASHSEED": "0"}
    target = str(root / HOME / "lib")
    subprocess.run([*command, "--invalidation-mode", "unchecked-hash", target], check=False, env=environ)


if __name__ == "__main__":
    sys.exit(main())
