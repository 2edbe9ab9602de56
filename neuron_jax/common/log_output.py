"""Where a program's log goes and in which shape: lines for people, for the journal with its levels, or JSON. Knows no program.

https://www.freedesktop.org/software/systemd/man/latest/sd-daemon.html, systemd.exec.html ($JOURNAL_STREAM)
"""

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from neuron_jax.common.errors import ConfigError
from neuron_jax.common.log_format import OneLine

SHAPE = "CORTEX_LOG"
"""Environment variable: `text`, which is meant without it, or `json`."""

TIME = "%(asctime)s "


class JsonLines(logging.Formatter):
    """One object a record: time (UTC), level, logger, message, and a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


class JournalLines(logging.Formatter):
    """What `inner` makes of a record, each line behind the level by which the journal knows it."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{syslog_level(record.levelno)}>"
        return "\n".join(prefix + line for line in self._inner.format(record).split("\n"))


def syslog_level(level: int) -> int:
    """Of a level of logging's: 7 debug, 6 info, 4 warning, 3 error, 2 critical."""
    return next((syslog for least, syslog in ((50, 2), (40, 3), (30, 4), (20, 6)) if level >= least), 7)


def log_to_stderr(layout: str, dates: str | None = None, environ: Mapping[str, str] | None = None) -> None:
    """This process's log, from INFO on, to where its owner looks for it; layouts as logging and strftime have them.

    `environ` tells what shape is wanted, and whether the journal reads it. Raises ConfigError for another shape.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(layout, dates, environ or {}, journal=_is_journal(environ or {})))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def formatter(layout: str, dates: str | None, environ: Mapping[str, str], *, journal: bool) -> logging.Formatter:
    """The one for these wishes. The journal has its own times."""
    shape = environ.get(SHAPE) or "text"
    if shape not in ("text", "json"):
        raise ConfigError([f"environment: {SHAPE} is {shape!r}; it must be text or json"])
    lines = JsonLines() if shape == "json" else OneLine(layout.removeprefix(TIME) if journal else layout, dates)
    return JournalLines(lines) if journal else lines


def _is_journal(environ: Mapping[str, str]) -> bool:
    """Whether stderr is the very stream that systemd set up: it may have been led elsewhere since."""
    try:
        stderr = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
