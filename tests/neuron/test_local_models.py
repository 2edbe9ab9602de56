"""`neuron pull`, `neuron models` and `neuron rm` on a cache of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_jax.cli import run
from tests.fakes.file_server import serving
from tests.neuron.weights.test_hub import GGUFS, SAFETENSORS, dressed, repository


def settings(cache: Path) -> dict[str, str]:
    return {"NEURON_CACHE__MODELS_DIR": str(cache)}


def put(path: Path, size: int = 7) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    return path


def test_a_model_is_pulled_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Progress goes to stderr, the answer to stdout; afterwards the cache is as it was."""
    with serving(repository(SAFETENSORS)) as server:
        dressed(server)
        environ = {**os.environ, **settings(tmp_path), "HF_ENDPOINT": server.url}
        command = [sys.executable, "-m", "neuron_jax", "pull", "org/tiny", "--revision", "main", "--json"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    pulled = json.loads(done.stdout)
    assert run(["models", "--json"], settings(tmp_path)) == 0
    shown = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert run(["rm", "org/tiny"], settings(tmp_path)) == 0

    assert pulled == {"id": "org/tiny@main", "path": str(tmp_path / "hub" / "org" / "tiny@main"), "bytes": 5010}
    assert "Downloading: " in done.stderr
    assert (shown["org/tiny"]["path"], shown["org/tiny"]["bytes"]) == (pulled["path"], 5010)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_what_is_not_here_is_listed_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Built-in models are offered, and a table says that they are not here yet."""
    assert run(["models"], settings(tmp_path)) == 0

    assert [line for line in capsys.readouterr().out.splitlines() if "smollm2-135m-instruct" in line and "demo" in line]


def test_other_models_of_a_folder_stay(tmp_path: Path) -> None:
    """Of two GGUF models one is removed; with the second what stood beside them goes as well."""
    folder = tmp_path / "hub" / "org" / "tiny@main"
    for name in (*GGUFS, "generation_config.json"):
        put(folder / name)
    assert run(["rm", "org/tiny:Q4_0"], settings(tmp_path)) == 0
    assert {file.name for file in folder.iterdir()} == {"tiny.Q8_0.gguf", "generation_config.json"}

    assert run(["rm", "org/tiny:tiny.Q8_0.gguf"], settings(tmp_path)) == 0
    assert not folder.exists()


def test_what_a_stopped_pull_left_is_removed(tmp_path: Path) -> None:
    """Of the hub and of the package index."""
    put(tmp_path / ".partial" / "hub" / "org" / "tiny@main" / "model.safetensors")
    put(tmp_path / ".partial" / "smollm2-135m-instruct.0.whl")

    assert run(["rm", "org/tiny"], settings(tmp_path)) == 0
    assert run(["rm", "demo"], settings(tmp_path)) == 0
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["rm", "org/tiny"], "org/tiny is not in"),
        (["rm", "what is this"], "is no model"),
        (["rm", "{own}"], "a path of your own, which is left alone"),
        (["pull", "{own}/nothing.gguf"], "is not a .gguf file"),
        (["pull", "demo", "--revision", "v2"], "demo takes no revision"),
        (["pull", "org/tiny@v1", "--revision", "v2"], "takes no revision"),
    ],
)
def test_what_cannot_be_done_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], words: str
) -> None:
    """One line, exit code 1, and nothing is touched."""
    own = put(tmp_path / "own" / "config.json").parent

    assert run([word.format(own=own) for word in command], settings(tmp_path / "cache")) == 1
    assert words in " ".join(capsys.readouterr().err.split())
    assert (own / "config.json").exists()
