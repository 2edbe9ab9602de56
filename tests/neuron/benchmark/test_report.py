"""The report's shape, its tables and its picture."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neuron_jax.benchmark.cases import Decode, LongPrompt, Prefill
from neuron_jax.benchmark.figures import DecodeFigures, LongFigures, Spread
from neuron_jax.benchmark.plot import plot
from neuron_jax.benchmark.report import decode_row, long_row, prefill_row
from neuron_jax.tables import print_bench

PARTS = {"host": 1.25, "plan": 0.25, "pack": 0.25, "dispatch": 0.5, "absorb": 0.25, "wait": 12.0, "steps": 64.0}
SPREAD = Spread(p50=0.012, p95=0.02, p99=0.03, max=0.05)
REPORT: dict[str, Any] = {
    "date": "2026-11-24T01:02:03+00:00",
    "model": {"id": "tiny", "quant": {"chosen": "none", "reason": "as asked"}},
    "machine": {"devices": ["Big Chip"], "cores": 2},
    "versions": {"jax": "0.10.2"},
    "start": {"seconds": 7.5, "phases": {"jax": 1.0, "weights": 4.25}, "all_programs_seconds": 24.5, "programs": 20},
    "memory": {"resident": 1400 << 20, "peak": 1500 << 20, "weights": 500 << 20, "kv": 700 << 20},
    "ceilings": {"copy": 41.5e9, "matmul": 480e9, "dtype": "float32"},
    "cases": [
        decode_row(Decode(1, 64, 32), DecodeFigures(60.0, 70.0, 70.0, SPREAD, SPREAD, 1.0), 0.61, PARTS),
        decode_row(Decode(16, 64, 32), DecodeFigures(160.0, 270.0, 17.0, SPREAD, SPREAD, 4.0), 0.2, PARTS),
        prefill_row(Prefill(512), 470.4, SPREAD, 0.42, PARTS),
        long_row(LongPrompt(4, 64, 4000), LongFigures(9.5, SPREAD, SPREAD, 2.5, 1.5), PARTS),
    ],
}


def shown(report: dict[str, Any]) -> str:
    screen = io.StringIO()
    print_bench(report, Console(width=200, file=screen))
    return screen.getvalue()


def test_a_row_names_its_case_and_everything_that_was_measured() -> None:
    """Seconds and fractions, as they were measured."""
    row = REPORT["cases"][0]

    assert {key: row[key] for key in ("kind", "case", "streams", "prompt", "generate")} == {
        "kind": "decode",
        "case": "1 stream",
        "streams": 1,
        "prompt": 64,
        "generate": 32,
    }
    assert row["gaps"] == {"p50": 0.012, "p95": 0.02, "p99": 0.03, "max": 0.05}
    assert row["engine"] == PARTS
    assert (REPORT["cases"][2]["rate"], REPORT["cases"][3]["ratio"]) == (470.4, 2.5)


def test_the_tables_show_the_figures_in_readable_units() -> None:
    """Milliseconds, percent, MiB; bursts are told."""
    text = shown(REPORT)

    for words in (
        "ready after 7.5 s (jax 1.0, weights 4.2)",
        "1,400 MiB = weights 500 MiB + KV 700 MiB + 200 MiB",
        "copying: 41.5 GB/s",
        "float32 matmul: 480 GFLOP/s",
        "12.0 / 20.0 / 30.0 / 50.0",
        "12.0 / 20.0 / 30.0 / 50.0, by 4.0",
        "61 %",
        "42 %",
        "470",
        "2.50",
    ):
        assert words in text


@pytest.mark.parametrize("kind", ["decode", "prefill", "long prompt"])
def test_a_kind_that_was_not_measured_has_no_table(kind: str) -> None:
    names = {"decode": "generating", "prefill": "of matmul rate", "long prompt": "while a prompt enters"}
    less = shown(REPORT | {"cases": [row for row in REPORT["cases"] if row["kind"] != kind]})

    assert {name for name in names.values() if name in less} == set(names.values()) - {names[kind]}


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    plot(REPORT, tmp_path / "figures.png")

    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")
