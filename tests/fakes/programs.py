"""Programs that tests start; knows how they end: none outlives its test."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def program(command: Sequence[str], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """A program of which text is read. `Popen` alone waits at its end, so a test that fails would wait for a living one."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            process.kill()  # of one that has ended and was waited for, nothing
