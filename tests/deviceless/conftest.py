"""For `make gpu-check`: skips elsewhere, shows what was found beside what is wanted, and keeps the best that was seen."""

import json
import os
import pathlib
from typing import Any

import pytest

from neuron_jax.deviceless.topology import ENVIRONMENT
from neuron_jax.hardware.discover import has_cuda_plugin

BOUNDS = pathlib.Path(__file__).with_name("bounds.json")
HERE = pathlib.Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tighten", action="store_true", help="hold what is better now than bounds.json says to what it is"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    why = None if has_cuda_plugin() else "JAX's CUDA wheels are not installed: make gpu-check"
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        why = why or "JAX was not told that there is no device: make gpu-check"
    for item in items:
        if why and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def bounds() -> Any:
    """What each program was at its best, and what it may be at most."""
    return json.loads(BOUNDS.read_text())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table. Results come from other processes with their reports."""
    reports = [report for state in ("passed", "failed") for report in terminalreporter.stats.get(state, ())]
    found = dict(value for report in reports for name, value in report.user_properties if name == "figures")
    if not found:
        return
    from tests.deviceless.cases import WANTED

    columns = list(WANTED.named())
    terminalreporter.write_sep("=", "programs compiled for cards that are not here")
    terminalreporter.write_line(f"{'':42}" + "".join(f"{name:>13}" for name in columns))
    for name, figures in sorted(found.items()):
        terminalreporter.write_line(f"{name:42}" + "".join(f"{figures[column]:>13}" for column in columns))
    wanted = WANTED.named()
    terminalreporter.write_line(f"{'wanted of a step of one':42}" + "".join(f"{wanted[c]:>13}" for c in columns))
    if terminalreporter.config.getoption("tighten", default=False):
        _tighten(found)


def _tighten(found: dict[str, dict[str, float]]) -> None:
    known = json.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    for name, figures in found.items():
        old = known.get(name, figures)
        known[name] = {figure: min(value, old.get(figure, value)) for figure, value in figures.items()}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
    BOUNDS.write_text(f"{{\n{lines}\n}}\n")
