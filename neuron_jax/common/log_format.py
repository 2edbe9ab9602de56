"""How a line of the log looks: one record is one line, whatever text of a client it carries. Knows strings, no request."""

import logging
from types import TracebackType

LONGEST_WORD = 200
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def printable(text: str) -> str:
    r"""`text` on one line: what would move the cursor, colour a terminal or turn the reading direction as \n, \x1b, \u202e."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def word(text: str) -> str:
    r"""`text` as one word of a line: spaces as \x20, so that no client can write the words after it; at most 200 characters."""
    cut = text if len(text) <= LONGEST_WORD else f"{text[:LONGEST_WORD]}…"
    return printable(cut).replace(" ", r"\x20")


class OneLine(logging.Formatter):
    """Messages are one line each; a traceback has more, all of them indented, so that none passes for a line of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- the name of logging's own method
        return printable(super().formatMessage(record))

    def formatException(self, ei: ExcInfo) -> str:  # noqa: N802 -- as above
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 -- as above
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return "\n".join("    " + printable(line) for line in text.split("\n"))
