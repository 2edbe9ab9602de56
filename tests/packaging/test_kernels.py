"""The wheel of compiled kernels: what is in it, and that it is the same each time; nothing is compiled."""

import importlib.util
import tomllib
import zipfile
from pathlib import Path

import pytest

from models.native import prebuilt

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_wheel_of_kernels_is_found_and_the_same_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """But for the compiler, which has to be as good as its word."""
    spec = importlib.util.spec_from_file_location("kernels", ROOT / "packaging/kernels.py")
    assert spec is not None
    assert spec.loader is not None
    kernels = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)

    def compiled(folder: Path, machine: str, level: str) -> Path:
        path: Path = folder / prebuilt.name(level)
        path.write_text(machine + level)
        return path

    monkeypatch.setattr(kernels, "compiled", compiled)
    monkeypatch.setattr(kernels, "glibc", lambda path: 28 if "v3" in path.name else 34)
    for out in ("a", "b"):
        (tmp_path / out).mkdir()
    first, second = (kernels.wheel(tmp_path / out, "x86_64") for out in ("a", "b"))
    zipfile.ZipFile(first).extractall(tmp_path / "installed")

    assert first.name == f"cortex_jax_kernels-{VERSION}-py3-none-manylinux_2_34_x86_64.whl"
    assert first.read_bytes() == second.read_bytes()
    assert prebuilt.pick(tmp_path / "installed/cortex_kernels", "x86_64", prebuilt.LEVELS["x86_64"][0][1])
