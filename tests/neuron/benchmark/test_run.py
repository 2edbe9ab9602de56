"""The whole of `neuron bench` on a tiny model: a real engine in a process of its own."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.cli import run
from tests.fakes import quick
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.vocabularies import byte_level_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("bench") / "tiny")
    (folder / "tokenizer.json").write_bytes(byte_level_json())
    return folder


def environ(folder: Path) -> dict[str, str]:
    limits = {"NEURON_ENGINE__MAX_SLOTS": "2", "NEURON_ENGINE__CHUNK_TOKENS": "16"}
    return dict(os.environ) | {"CORTEX_CACHE": str(folder / "cache")} | limits | quick.ENVIRON


@pytest.mark.slow
def test_everything_is_measured_once_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two cases of streams, one of a prompt; a table, JSON and a picture."""
    outputs = ["--json", str(folder / "out.json"), "--plot", str(folder / "out.png")]
    cases = ["--streams", "1,2", "--prefill", "40", "--prompt", "8", "--generate", "6", "--rounds", "2"]

    assert run(["bench", str(folder), "--quant", "none", *cases, *outputs], environ(folder)) == 0
    captured = capsys.readouterr()
    assert "2 streams" in captured.out
    assert "Measuring: 0/9 cases" in captured.err
    assert (folder / "out.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((folder / "out.json").read_text())
    assert_plausible(report)


def assert_plausible(report: dict[str, Any]) -> None:
    """Figures that a shared machine cannot change: what is positive, what is below what."""
    memory, start = report["memory"], report["start"]
    assert 0 < memory["weights"] + memory["kv"] < memory["resident"]
    assert 0 < sum(start["phases"].values()) < start["seconds"] <= start["all_programs_seconds"]
    assert report["ceilings"]["copy"] > 1e8
    assert report["ceilings"]["matmul"] > 1e8
    assert [row["case"] for row in report["cases"]] == ["1 stream", "2 streams", "prefill 40"]
    for row in report["cases"][:2]:
        assert 0 < row["gaps"]["p50"] <= row["gaps"]["p95"] <= row["gaps"]["max"]
        assert row["decode"] >= row["stream"] > 0
        assert row["bandwidth"] > 0
    for row in report["cases"]:
        parts = row["engine"]
        assert parts["steps"] > 0
        assert parts["host"] == pytest.approx(sum(parts[name] for name in ("plan", "pack", "dispatch", "absorb")))
    assert report["cases"][2]["rate"] > 0
    assert 0 < report["cases"][2]["matmul"] < 1


def test_a_case_beyond_the_engine_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In words that name the case; nothing was measured."""
    assert run(["bench", str(folder), "--streams", "3", "--prefill", "600"], environ(folder)) == 1
    told = capsys.readouterr().err

    assert "3 streams: 3 requests at once, the engine runs 2" in told
    assert "prefill 600: 601 tokens, the engine holds 512 of one request" in told
    assert "Measuring" not in told


def test_a_picture_without_matplotlib_is_refused_before_anything(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words that say what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    assert run(["bench", str(folder), "--plot", str(folder / "other.png")], environ(folder)) == 1
    assert "pip install 'cortex-jax[bench]'" in " ".join(capsys.readouterr().err.split())
