"""How a load looks: bars on a terminal, lines elsewhere, and the truth about amounts in both."""

import io

import pytest
from rich.console import Console

from cortex_gateway.cli.progress import LoadBars, amount
from cortex_gateway.placement.snapshot import LoadStatus


def shown(*statuses: LoadStatus, terminal: bool) -> str:
    """What a person sees at the end."""
    out = Console(file=io.StringIO(), force_terminal=terminal, width=100, legacy_windows=False)
    with LoadBars(out) as bars:
        for status in statuses:
            bars.report(status)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


HALF = LoadStatus(phase="download", done=46_000_000, total=92_900_000, unit="bytes")
WHOLE = LoadStatus(phase="download", done=92_900_000, total=92_900_000, unit="bytes")
COMPILE = LoadStatus(phase="compile", done=3, total=5, unit="programs")


def test_a_pipe_gets_one_line_per_phase() -> None:
    """When the phase is over, with its whole size."""
    text = shown(HALF, WHOLE, COMPILE, terminal=False)

    assert text == "  Downloading 92.9/92.9 MB\n  Compiling 5/5 programs\n"


def test_a_terminal_gets_a_bar_per_phase() -> None:
    """Both are full at the end, and an unknown phase has a name too."""
    text = shown(HALF, COMPILE, LoadStatus(phase="polishing"), terminal=True)

    last = text.split("\x1b[2K")[-1]
    assert "92.9/92.9 MB" in last
    assert "5/5 programs" in last
    assert "Polishing" in last


def test_what_nobody_counts_has_no_amount() -> None:
    """Also when it is over: its bar is full, and nothing says 1/1."""
    text = shown(LoadStatus(phase="starting"), COMPILE, terminal=True)

    assert "1/1" not in text


def test_a_failed_load_does_not_look_finished() -> None:
    """The phase in which it failed has no line of success."""
    out = Console(file=io.StringIO())

    def fail() -> None:
        with LoadBars(out) as bars:
            bars.report(HALF)
            raise ValueError("cut short")

    with pytest.raises(ValueError, match="cut short"):
        fail()
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue() == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (LoadStatus(phase="x"), ""),
        (HALF, "46.0/92.9 MB"),
        (COMPILE, "3/5 programs"),
        (LoadStatus(phase="x", done=1, total=2), "1/2"),
    ],
)
def test_amount(status: LoadStatus, words: str) -> None:
    """Megabytes for bytes, plain counts for the rest, nothing where nobody counts."""
    assert amount(status) == words
