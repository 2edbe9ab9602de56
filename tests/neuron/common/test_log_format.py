"""No client can write a line of a log, or a word of one, that is not its own; nor can a model's files."""

import io
import logging

import pytest

from neuron_jax.common.log_format import LONGEST_WORD, OneLine, printable, word

FORGED = "x\n2026-01-01 00:00:00 POST /admin/unload 200 1 ms"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 汉字 and é", "plain text, 汉字 and é"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_is_not_printable_is_spelled_out(text: str, shown: str) -> None:
    """Line ends of every kind, terminal sequences, turned reading directions, and halves of characters."""
    assert printable(text) == shown


def test_a_word_has_no_space_and_an_end() -> None:
    """Else a path could go on with a status and a time."""
    assert word("/x 200 ok") == r"/x\x20200\x20ok"
    assert len(word("y" * 70_000)) == LONGEST_WORD + 1


def logged(message: str, *arguments: object, error: Exception | None = None) -> list[str]:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(OneLine("%(message)s"))
    log = logging.Logger("it")  # noqa: LOG001 -- one of its own, which nobody else listens to
    log.addHandler(handler)
    log.error(message, *arguments, exc_info=error)
    return out.getvalue().splitlines()


def test_a_message_is_one_line() -> None:
    """Whichever module logs it, and whoever wrote the text in it."""
    assert logged("loading %s on beast", FORGED) == [
        r"loading x\n2026-01-01 00:00:00 POST /admin/unload 200 1 ms on beast"
    ]


def test_lines_of_a_traceback_are_indented() -> None:
    """The words of an exception may be a client's, too."""
    first, *more = logged("request %s failed", "r1", error=ValueError(FORGED))

    assert first == "request r1 failed"
    assert any("ValueError: x" in line for line in more)
    assert all(line.startswith("    ") for line in more)


@pytest.mark.parametrize("text", [FORGED, "a\x1b[31m\x07", "a\u2028b\x85", "\u202egnp.exe", "\ud800"])
def test_one_record_is_one_line(text: str) -> None:
    """Whatever stands in its message; the lines of a traceback are indented."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(OneLine("%(levelname)s %(message)s"))
    log = logging.Logger("it")  # noqa: LOG001 -- one of its own, which nobody else listens to
    log.addHandler(handler)
    log.error("%s", text)
    try:
        int(text)
    except ValueError:
        log.exception("%s", text)
    lines = out.getvalue().split("\n")

    assert [line.startswith("ERROR ") for line in lines[:2]] == [True, True]
    assert all(line.startswith("    ") for line in lines[2:-1])
    assert all(line.isprintable() for line in lines)
