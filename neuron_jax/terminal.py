"""Where commands print: bars on a terminal, a line for each phase elsewhere; knows records of progress, no engines."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PHASES = {
    "download": "Downloading",
    "unpack": "Unpacking",
    "weights": "Loading weights",
    "write": "Writing",
    "compile": "Compiling",
    "cache": "Reserving the cache",
    "measure": "Measuring",
}
MEGABYTE = 1_000_000

PIPED_WIDTH = 200

Record = Mapping[str, Any]


def console(*, stderr: bool = False) -> Console:
    """Colours on a terminal; elsewhere plain and wide, so that nothing is cut."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = PIPED_WIDTH
    return made


def show_progress(records: Iterable[Record], out: Console) -> Iterator[Record]:
    """`records` without the {"phase", "done", "total", "unit"} among them, which `out` shows."""
    yield from (_with_bars if out.is_terminal else _with_lines)(records, out)


def _with_bars(records: Iterable[Record], out: Console) -> Iterator[Record]:
    columns = (TextColumn("{task.description:<16}"), BarColumn(28), TextColumn("{task.fields[amount]}"))
    with Progress(*columns, TimeElapsedColumn(), console=out, transient=True) as bars:
        tasks: dict[str, Any] = {}
        for record in records:
            if "phase" not in record:
                yield record
                continue
            phase = str(record["phase"])
            if phase not in tasks:
                tasks[phase] = bars.add_task(PHASES.get(phase, phase), amount="")
            bars.update(tasks[phase], completed=record["done"], total=record["total"], amount=amount(record))


def _with_lines(records: Iterable[Record], out: Console) -> Iterator[Record]:
    last = None
    for record in records:
        if "phase" not in record:
            yield record
        elif record["phase"] != last:
            last = record["phase"]
            out.print(f"{PHASES.get(last, last)}: {amount(record)}")


def amount(record: Record) -> str:
    """`12.3/92.9 MB` or `3/8 programs`."""
    done, total, unit = record["done"], record["total"], record["unit"]
    if unit == "bytes":
        return f"{done / MEGABYTE:,.1f}/{total / MEGABYTE:,.1f} MB"
    return f"{done}/{total} {unit}"
