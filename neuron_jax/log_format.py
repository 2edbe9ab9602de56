"""How a line of the log looks: one record is one line, whatever text of a client it carries. Knows strings, no request."""

import logging
import sys
from types import TracebackType

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def log_to_stderr(layout: str) -> None:
    """This process's log, from INFO on, to where its owner looks for it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(layout))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class OneLine(logging.Formatter):
    """Messages are one line each; a traceback has more, all of them indented, so that none passes for a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- the name of logging's own method
        return _printable(super().formatMessage(record))

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 -- as above
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 -- as above
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join("    " + _printable(line) for line in text.split("\n"))


def _printable(text: str) -> str:
    r"""On one line: what would move the cursor, colour a terminal or turn the reading direction as \n, \x1b, \u202e."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )
