"""Nothing that a client or a model's files say becomes a line of the neuron's log that is not its own."""

import io
import logging

import pytest

from neuron_jax.log_format import OneLine

FORGED = "x\n2026-01-01 00:00:00,000 INFO neuron.lifecycle: unloaded org/tiny"


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
