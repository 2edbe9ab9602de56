"""How a load looks while it runs: bars on a terminal, one line per phase elsewhere. Knows phases, no HTTP."""

from types import TracebackType
from typing import Self

from attrs import define, field
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from cortex_gateway.placement.snapshot import LoadStatus

PHASES = {
    "queued": "Waiting for room",
    "making room": "Making room",
    "waiting for memory": "Waiting for memory",
    "starting": "Starting",
    "loading": "Loading",
    "download": "Downloading",
    "weights": "Loading weights",
    "compile": "Compiling",
    "cache": "Reserving the cache",
    "prompt": "Reading the prompt",
}
MEGABYTE = 1_000_000
AMOUNT_WIDTH = len("12345.6/12345.6 MB")  # the times stand below each other whatever is counted


class Amount(ProgressColumn):
    """`12.3/92.9 MB`, `3/8 programs`, or nothing where nobody counts."""

    def render(self, task: Task) -> Text:
        total = int(task.total or 0) if task.fields["counted"] else 0
        return Text(amount(LoadStatus(phase="", done=int(task.completed), total=total, unit=task.fields["unit"])))


@define
class LoadBars:
    """`report` is called with every status; a new phase closes the one before it."""

    console: Console
    _bars: Progress | None = field(default=None, init=False)
    _last: LoadStatus | None = field(default=None, init=False)
    _tasks: dict[str, int] = field(factory=dict, init=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            amounts = Amount(table_column=Column(min_width=AMOUNT_WIDTH, no_wrap=True))
            columns = (TextColumn("  {task.description:<18}"), BarColumn(28), amounts, TimeElapsedColumn())
            self._bars = Progress(*columns, console=self.console)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._close_phase()
        if self._bars:
            self._bars.stop()

    def report(self, status: LoadStatus) -> None:
        if self._last is None or self._last.phase != status.phase:
            self._close_phase()
        self._last = status
        if self._bars:
            self._draw(self._bars, status)

    def _draw(self, bars: Progress, status: LoadStatus) -> None:
        if status.phase not in self._tasks:
            title = PHASES.get(status.phase, status.phase.capitalize())
            self._tasks[status.phase] = bars.add_task(title, total=None, unit="", counted=False)
        task = bars.tasks[self._tasks[status.phase]]
        counted = bool(status.total)
        bars.update(task.id, completed=status.done, total=status.total or None, unit=status.unit, counted=counted)

    def _close_phase(self) -> None:
        """A finished phase is a full bar, or its one line."""
        if self._last is None:
            return
        if self._bars:
            task = self._bars.tasks[self._tasks[self._last.phase]]
            self._bars.update(task.id, completed=task.total or 1, total=task.total or 1)
            self._bars.stop_task(task.id)
            return
        title = PHASES.get(self._last.phase, self._last.phase.capitalize())
        whole = amount(LoadStatus(phase="", done=self._last.total, total=self._last.total, unit=self._last.unit))
        self.console.print(f"  {title} {whole}".rstrip(), highlight=False)


def in_words(status: LoadStatus) -> str:
    """In one line: `loading weights 12.3/92.9 MB`."""
    title = PHASES.get(status.phase, status.phase)
    return f"{title[:1].lower()}{title[1:]} {amount(status)}".rstrip()


def amount(status: LoadStatus) -> str:
    """How much of how much, in words."""
    if not status.total:
        return ""
    if status.unit == "bytes":
        return f"{status.done / MEGABYTE:.1f}/{status.total / MEGABYTE:.1f} MB"
    return f"{status.done}/{status.total} {status.unit}".rstrip()
