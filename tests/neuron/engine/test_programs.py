"""The compiled programs: the state is donated, and serving adds none."""

import attrs
import jax
import jax.numpy as jnp
import pytest

from neuron_jax.engine.buckets import StepKey
from neuron_jax.engine.runner import Runner
from tests.fakes.quick import Quick


@pytest.mark.parametrize("key", [StepKey(4, 4), StepKey(4, 4, 4), StepKey(64, 24)])
def test_the_state_is_donated_and_not_copied(runner: Runner, key: StepKey) -> None:
    """alias bytes >= state bytes, and temporaries that do not grow with the pool (openxla/xla#45912)."""
    larger = attrs.evolve(runner.program, shapes=attrs.evolve(runner.program.shapes, pages=(1000,)))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(larger.abstract_state()))
    memory = Quick(larger.lower(key)).compile().memory_analysis()

    assert memory.alias_size_in_bytes >= state
    assert memory.temp_size_in_bytes == runner.compiler.ready[key].memory_analysis().temp_size_in_bytes


def test_what_is_compiled_outside_of_the_plan_is_counted(runner: Runner) -> None:
    before = runner.compiler.unplanned
    jax.jit(lambda x: x * 3 + 1)(jnp.zeros(7))

    assert runner.compiler.unplanned > before
