"""What `make gpu` does around its measurements: stages that hang, fail or find no time; its tables; and all of it, tiny."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import table
from bench.gpu.stage import Stage, merged, run
from tests.fakes.waiting import until_sync

BEGINS = """echo '{"cases": [1]}' >> "$2"; """


def stage(code: str, seconds: float, *, plain: bool = False) -> Stage:
    """A line for a shell, which starts at once on a busy machine, too; $2 is the file for its records."""
    return Stage("some", ("sh", "-c", code, "stage"), seconds, dict(os.environ), plain)


@pytest.mark.parametrize(
    ("code", "seconds", "problem"),
    [
        (BEGINS + BEGINS, 60, None),
        (BEGINS + "printf '[2' >> \"$2\"; echo out of memory; exit 1", 60, "ended with 1"),
        (BEGINS + "sleep 600", 3, "took more than 3 s and was ended"),
    ],
)
def test_a_stage_counts_as_far_as_it_came(code: str, seconds: float, problem: str | None, tmp_path: Path) -> None:
    """Whole lines only, and with its last words."""
    came = run(stage(code, seconds), tmp_path, time.monotonic() + 60)

    assert came.problem == problem
    assert merged(came.records) == {"cases": [1, 1] if problem is None else [1]}
    assert ("out of memory" in came.last) == (came.problem == "ended with 1")


def test_what_a_stage_has_started_ends_with_it(tmp_path: Path) -> None:
    came = run(stage("sleep 600 & echo $!; wait", 3, plain=True), tmp_path, time.monotonic() + 60)
    command = Path(f"/proc/{int(came.last)}/cmdline")

    until_sync(lambda: not command.exists() or not command.read_bytes(), 20)


def test_nothing_begins_behind_the_deadline(tmp_path: Path) -> None:
    came = run(stage("exit 1", 60), tmp_path, time.monotonic() - 1)

    assert came.problem == "not begun: no time was left"


def decoded(streams: int, rate: float) -> dict[str, Any]:
    times = {"step_ms": 8.0, "device_ms": 7.5, "gap_ms": 0.5}
    return {
        "kind": "decode",
        "case": f"{streams} stream",
        "streams": streams,
        "decode": rate,
        "bandwidth": 0.8,
        **times,
    }


REPORT: dict[str, Any] = {
    "date": "2026-11-27",
    "shape": "Shapes",
    "device": {"name": "a card", "jax": "1", "ceilings": {"copy": 3e12, "matmul": 8e14, "dtype": "bfloat16"}},
    "engines": {
        "none": {
            "cases": [decoded(1, 130.0), {"kind": "prefill", "case": "prefill 2,048", "rate": 9000.0, "matmul": 0.5}]
        },
        "int4": {},
    },
    "predicted": {
        "none": {"decode": [{"streams": 1, "tokens_per_second": 146.0}], "prefill": [{"tokens_per_second": 12345.0}]}
    },
    "start warm": {"ready_seconds": 12.0, "load_rate": 2e10, "phases": {"jax": 2.0, "weights": 1.0}},
    "stages": [{"name": "engine int4", "seconds": 110.0, "problem": "took more than 110 s and was ended"}],
}


def test_the_tables_have_what_was_seen_beside_what_was_predicted() -> None:
    shown = table.text(REPORT)

    assert "| bfloat16 | 1 stream | 130 | 146 | 80% | copying | 85% | 8.00 | 7.50 | 0.50 |" in shown
    assert "| bfloat16 | prefill 2,048 | 9,000 | 12,345 | 50% | multiplying | 60% |  |  |  |" in shown
    assert "| start warm | 12.0 | 20.00 | jax 2.0, weights 1.0 |" in shown
    assert "| engine int4 | 110 | took more than 110 s and was ended |" in shown


def test_a_page_gets_the_tables_in_the_place_of_those_before() -> None:
    page = Path("docs/benchmarks.md").read_text()
    once = table.written(page, REPORT)

    assert table.text(REPORT) in once
    assert table.written(once, REPORT) == once
    assert once.partition(table.BEGIN)[0] == page.partition(table.BEGIN)[0]
    with pytest.raises(ValueError, match="has no"):
        table.written("nothing", REPORT)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_runs_with_a_tiny_model_on_a_cpu(tmp_path: Path) -> None:
    """But for what only a card knows."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--shape", "tiny", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    report = json.loads(out.read_text())

    assert done.returncode == 0, done.stdout
    assert {name: len(engine["cases"]) for name, engine in report["engines"].items()} == dict.fromkeys(
        ("none", "int8", "int4", "fp8"), 4
    )
    assert report["start warm"]["load_rate"] > 0
