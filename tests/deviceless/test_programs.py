"""An engine's step programs as XLA makes them for cards that are not here: what holds, and what must not get worse.

`bounds.json` has what each program was at its best. Where that is not what is wanted yet, the table at the end shows both.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.deviceless.cases import CASES, ONE, SLOT, Case, measure

SLACK = 0.02
"""What a share may differ by between compilations: XLA's order is not always the same."""

PROGRAMS = [(case, key) for case in CASES for key in case.keys]


@pytest.mark.parametrize(("case", "key"), PROGRAMS, ids=[f"{case} {key}" for case, key in PROGRAMS])
def test_a_program_is_what_it_was(case: Case, key: str, bounds: Any, record_property: Any, tmp_path: Path) -> None:
    found = measure(case, key, tmp_path)
    name, memory, census = f"{case} {key}", found.compiled.memory, found.census
    figures = dict(found.figures().named())
    record_property("figures", (name, figures))
    layers = found.made.depth.layers
    sums = {} if case.devices == 1 or key == SLOT else {"all-reduce": 2 * layers + 1, "all-gather": 1}

    assert memory.alias >= found.state, "the pool and the state are written in place"
    assert _counted(census.collectives, case) == sums, "two sums a layer, one of the embedding, and the logits"
    assert [kernel for kernel in found.kernels if kernel.spilled] == [], "a kernel of ours has registers enough"
    assert name in bounds, "nothing is known of it yet: make gpu-check ARGS=--tighten"
    best = {"copied": 0, "unplanned": 0, **bounds[name]}
    known = {figure: (value, best[figure]) for figure, value in figures.items() if figure in best}
    worse = {figure: both for figure, both in known.items() if both[0] > both[1] + SLACK}
    assert not worse, f"figure: (now, at its best): {worse}"


def _counted(collectives: Any, case: Case) -> dict[str, int]:
    """A coded table has a scale for each token, which is one more sum."""
    found = dict(collectives)
    if case.quant in ("int8", "int4", "fp8") and found:
        found["all-reduce"] -= 1
    return found


def test_a_step_of_one_reads_the_weights_once(bounds: Any) -> None:
    """At no more than a twentieth besides, where its weights are as they are multiplied."""
    plain = [name for name in bounds if name.startswith("llama-8b") and name.endswith(f" x1 none {ONE}")]

    assert plain
    assert all(bounds[name]["moved"] <= 1.05 for name in plain)
