"""Which Python the environment is made of, by what is on PATH and in pyenv's folder; the scripts run, nothing is installed."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SHIM = 'echo "pyenv: $0: command not found" >&2; exit 127'
"""What pyenv puts on PATH for versions that are installed and not chosen."""


def python(path: pathlib.Path, version: str = "", *, shim: bool = False) -> pathlib.Path:
    """A program that answers for Python `version` and makes no environment, or a shim that runs nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = f"echo {version} '{path}'" if int((version or "3.0").split(".")[1]) >= 11 else "exit 0"
    says = f'case "$*" in *sys.executable*) {new};; *-m*venv*) exit 1;; *) echo {version};; esac'
    path.write_text(f"#!/bin/sh\n{SHIM if shim else says}\n")
    path.chmod(0o755)
    return path


def environ(home: pathlib.Path) -> dict[str, str]:
    """No Python but those below `home`."""
    tools = home / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("sh", "tr", "ls", "grep", "awk", "sort", "dirname"):
        found = next(path for folder in os.get_exec_path() if (path := pathlib.Path(folder, name)).exists())
        (tools / name).symlink_to(found)
    return {"PATH": f"{home}/bin:{home}/sbin:{tools}", "HOME": str(home)}


def test_every_version_is_found_once_and_shims_are_not(tmp_path: pathlib.Path) -> None:
    """Ascending by number, not by letter; what PATH has goes before what pyenv has; 3.9 and what does not run is none."""
    python(tmp_path / "bin/python3", "3.9")
    python(tmp_path / "bin/python3.13", shim=True)
    twelve = python(tmp_path / "sbin/python3.12", "3.12")
    python(tmp_path / "bin/python3.12-config", "3.14")
    python(tmp_path / ".pyenv/versions/3.12.1/bin/python3", "3.12")
    thirteen = python(tmp_path / ".pyenv/versions/3.13.0/bin/python3", "3.13")
    hundred = python(tmp_path / ".local/share/uv/python/cpython-3.100/bin/python3", "3.100")

    done = subprocess.run(
        ["sh", str(ROOT / "tools/pythons.sh")], env=environ(tmp_path), capture_output=True, text=True, check=True
    )

    assert done.stdout == f"3.12 {twelve}\n3.13 {thirteen}\n3.100 {hundred}\n"
    assert done.stderr == ""


@pytest.mark.parametrize("named", ["python3.13", "/nowhere/python3"])
def test_a_named_python_that_does_not_run_is_told(tmp_path: pathlib.Path, named: str) -> None:
    """And no other is taken in its place."""
    python(tmp_path / "bin/python3", "3.12")
    python(tmp_path / "bin/python3.13", shim=True)
    done = set_up(tmp_path, PYTHON=named)

    assert done.returncode == 1
    assert f"PYTHON={named} is none or does not run" in done.stderr
    assert done.stdout == ""


def test_where_there_is_no_python_the_cure_is_named(tmp_path: pathlib.Path) -> None:
    python(tmp_path / "bin/python3", "3.9")
    done = set_up(tmp_path)

    assert done.returncode == 1
    assert "cortex needs Python 3.11 or newer" in done.stderr
    assert "make PYTHON=/path/to/python3.12 demo" in done.stderr


@pytest.mark.parametrize(("usual", "taken"), [("3.12", "bin/python3"), ("3.9", ".pyenv/versions/3.13.0/bin/python3")])
def test_the_usual_python_is_taken_or_else_the_newest(tmp_path: pathlib.Path, usual: str, taken: str) -> None:
    python(tmp_path / "bin/python3", usual)
    python(tmp_path / ".pyenv/versions/3.11.7/bin/python3", "3.11")
    python(tmp_path / ".pyenv/versions/3.13.0/bin/python3", "3.13")
    done = set_up(tmp_path)

    assert done.returncode == 1
    assert f"{tmp_path / taken} makes no environment" in done.stderr


def set_up(home: pathlib.Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ROOT / "tools/setup.sh"), str(home / "venv")]
    return subprocess.run(command, env=environ(home) | more, capture_output=True, text=True, check=False)
