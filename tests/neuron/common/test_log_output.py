"""The shapes of a log: lines for people, with the journal's levels, JSON."""

import json
import logging
import os
import subprocess
import sys

import pytest

from neuron_jax.common.errors import ConfigError
from neuron_jax.common.log_output import formatter

LAYOUT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def record(level: int, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord("neuron.it", level, __file__, 1, "loading %s", ("m\nn",), info)


@pytest.mark.parametrize(("level", "number"), [(10, 7), (20, 6), (30, 4), (40, 3), (50, 2)])
def test_the_journal_gets_a_level_and_no_time(level: int, number: int) -> None:
    shown = formatter(LAYOUT, None, {}, journal=True).format(record(level))

    assert shown == rf"<{number}>{logging.getLevelName(level)} neuron.it: loading m\nn"


def test_every_line_of_a_traceback_has_the_level() -> None:
    """The journal takes each for an entry of its own."""
    shown = formatter(LAYOUT, None, {}, journal=True).format(record(40, ValueError("no")))

    assert shown.count("\n") >= 1
    assert all(line.startswith("<3>") for line in shown.split("\n"))


def test_json_is_an_object_a_line() -> None:
    shown = formatter(LAYOUT, None, {"CORTEX_LOG": "json"}, journal=False).format(record(40, ValueError("no")))
    said = json.loads(shown)

    assert "\n" not in shown
    assert said.pop("time").endswith("+00:00")
    assert "ValueError: no" in said.pop("traceback")
    assert said == {"level": "error", "logger": "neuron.it", "message": "loading m\nn"}


def test_another_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="CORTEX_LOG is 'xml'; it must be text or json"):
        formatter(LAYOUT, None, {"CORTEX_LOG": "xml"}, journal=False)


@pytest.mark.parametrize("ours", [True, False])
def test_only_the_journals_own_stream_gets_levels(*, ours: bool) -> None:
    """What was led elsewhere since is for people."""
    read, write = os.pipe()
    stream = os.fstat(write)
    probe = (
        "import logging, os; from neuron_jax.common.log_output import log_to_stderr\n"
        "log_to_stderr('%(asctime)s %(message)s', environ=os.environ); logging.warning('hello')"
    )
    environ = os.environ | {"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino if ours else 1}"}
    subprocess.run([sys.executable, "-c", probe], stderr=write, env=environ, check=True)
    os.close(write)
    with os.fdopen(read) as heard:
        said = heard.read()

    assert (said == "<4>hello\n") == ours
    assert said.endswith("hello\n")
