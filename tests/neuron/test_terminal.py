"""What a long command shows while it runs."""

import io
from typing import Any

from rich.console import Console

from neuron_jax.terminal import show_progress

RECORDS: list[dict[str, Any]] = [
    {"phase": "weights", "done": 0, "total": 96_600_000, "unit": "bytes"},
    {"phase": "weights", "done": 96_600_000, "total": 96_600_000, "unit": "bytes"},
    {"answer": 1},
    {"phase": "compile", "done": 3, "total": 5, "unit": "programs"},
    {"answer": 2},
]


def shown(*, terminal: bool) -> str:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100)

    assert list(show_progress(RECORDS, console)) == [{"answer": 1}, {"answer": 2}]
    return screen.getvalue()


def test_a_file_gets_a_line_for_each_phase() -> None:
    assert shown(terminal=False).splitlines() == ["Loading weights: 0.0/96.6 MB", "Compiling: 3/5 programs"]


def test_a_terminal_gets_bars() -> None:
    """The answers pass through either way."""
    text = shown(terminal=True)

    assert "Loading weights" in text
    assert "96.6/96.6 MB" in text
    assert "3/5 programs" in text
