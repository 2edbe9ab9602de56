"""The design of an engine: what a spec leaves open is decided by what was measured, and what it says is done."""

from typing import Any

import jax
import pytest

from models.native.library import unavailable
from neuron_jax.engine import build
from neuron_jax.engine.buckets import Buckets
from neuron_jax.engine.build import DEFAULT_GUESSES, DEFAULT_STEPS, design
from neuron_jax.workers.frames import EngineSpec
from tests.fakes.tiny_kinds import tiny
from tests.fakes.tiny_llama import CONFIG


def buckets(**spec: Any) -> Buckets:
    return design(CONFIG, EngineSpec("tiny", "", max_slots=4, **spec), limit=2**30).buckets


def test_tokens_are_guessed_where_the_native_kernels_compute() -> None:
    assert buckets().guesses == (DEFAULT_GUESSES if unavailable() is None else 0)
    assert buckets(tensor_parallel=2, devices=(0, 1)).guesses == 0


@pytest.mark.parametrize("guesses", [0, 7])
def test_what_the_spec_says_of_guessing_is_done(guesses: int) -> None:
    made = buckets(speculate=guesses)

    assert made.guesses == guesses
    assert made.rows == 4 + 4 * guesses


def test_states_that_guesses_are_taken_back_to_are_planned() -> None:
    """For a few texts, one behind each token of a step but the last; without a prefix cache nothing else needs any. Nobody
    guesses for such a model without being asked.
    """
    model, _ = tiny("gated delta rule", "full")
    plans = [
        build.design_of(model, EngineSpec("tiny", "", speculate=guesses, prefix_cache=False), limit=2**30).plan
        for guesses in (-1, 0, 3)
    ]

    assert [plan.snapshots for plan in plans] == [0, 0, 12]


def test_what_the_spec_says_of_steps_and_chunks_is_done() -> None:
    assert (buckets().steps, buckets(decode_steps=1).steps, buckets(decode_steps=8).steps) == (DEFAULT_STEPS, 1, 8)
    assert buckets(chunk_tokens=40).tokens[-1] == 40


def test_attention_is_computed_as_the_spec_says() -> None:
    """By XLA a program computes its padding as well."""
    config = CONFIG | {"head_dim": 16}
    exact, plain = (
        design(config, EngineSpec("tiny", "", max_slots=4, attention=asked), limit=2**30) for asked in ("auto", "xla")
    )

    assert build.program_for(plain, jax.devices("cpu")[:1]).attention.name == "xla"
    assert (exact.buckets.exact, plain.buckets.exact) == (unavailable() is None, False)
