"""A child process for one job: what it is given, what it tells, and every way in which it can end."""

import os
import time

import pytest

from neuron_jax.errors import LoadError, NeuronError
from neuron_jax.workers.child import Record, run_child
from neuron_jax.workers.frames import EngineSpec

SPEC = EngineSpec("tiny", "/nowhere", devices=(0, 1), tensor_parallel=2)


def records_of(end: str, module: str = "tests.fakes.children") -> list[Record]:
    return list(run_child(module, SPEC, {"end": end}, os.environ))


def test_it_is_given_the_spec_and_when_it_was_started() -> None:
    (record,) = records_of("well")

    assert (record["model"], record["devices"]) == ("tiny", [0, 1])
    assert 0 < record["waited"] < 60


def test_a_failure_with_a_name_is_that_error() -> None:
    with pytest.raises(LoadError, match="a misfit") as failed:
        records_of("named")

    assert failed.value.kind == "bad_checkpoint"


@pytest.mark.parametrize(
    ("end", "words"),
    [("unnamed", "exit code 1: .*last words.*RuntimeError: of a bug"), ("killed", "exit code 3: killed by itself")],
)
def test_any_other_end_is_told_with_its_last_words(end: str, words: str) -> None:
    with pytest.raises(NeuronError, match=f"(?s){words}"):
        records_of(end)


def test_a_child_that_cannot_even_start_says_why() -> None:
    with pytest.raises(NeuronError, match="No module named"):
        records_of("well", module="tests.fakes.nothing_here")


def test_whoever_stops_listening_ends_it() -> None:
    """Long before it would have ended by itself."""
    records = run_child("tests.fakes.children", SPEC, {"end": "never"}, os.environ)
    next(records)
    began = time.monotonic()
    records.close()

    assert time.monotonic() - began < 10
