"""The compiled programs: the list is the declaration, the state is donated, and serving adds none."""

import attrs
import jax
import jax.numpy as jnp
import pytest

from neuron_jax.engine.buckets import GUESSING_ROWS, Menu, SlotKey, StepKey, declare, one_size
from neuron_jax.engine.runner import Runner
from tests.fakes.quick import Quick


def test_the_list_names_every_program_once_with_the_essential_ones_first() -> None:
    buckets = declare(max_slots=6, chunk_tokens=100, decode_steps=4, guesses=3)
    keys = buckets.keys()

    assert buckets.rows == 6 + 3 * GUESSING_ROWS
    assert buckets.tokens == (1, 2, 4, 6, 8, 16, 18, 32, 64, 100)
    assert keys[: len(buckets.essential())] == buckets.essential()
    assert len(keys) == len(set(keys)) == 10 + 4 + 1


def test_a_step_of_few_tokens_has_a_row_for_each() -> None:
    keys = declare(max_slots=6, chunk_tokens=32).keys()

    assert {key.tokens: key.rows for key in keys if key != SlotKey()} == {1: 1, 2: 2, 4: 4, 6: 6, 8: 6, 16: 6, 32: 6}


def test_the_essential_programs_serve_anything() -> None:
    essential = declare(max_slots=32, chunk_tokens=256).essential()

    assert {StepKey(256, 32), StepKey(32, 32), StepKey(1, 1), SlotKey()} <= set(essential)


def test_programs_that_skip_padding_serve_every_size_but_are_few() -> None:
    buckets = declare(max_slots=6, chunk_tokens=100, decode_steps=4, guesses=3, exact=True)

    assert buckets.keys() == [StepKey(100, 18), StepKey(18, 18), SlotKey(), StepKey(6, 6, 4)]
    assert set(range(1, 9)) | {18, 96, 100} <= set(buckets.tokens)
    assert {key.tokens for key in buckets.sizes(buckets.keys()) if key != SlotKey()} == set(buckets.tokens)
    assert set(buckets.sizes([StepKey(6, 6, 4)])) == {StepKey(rows, rows, 4) for rows in range(1, 7)}
    assert declare(max_slots=6, chunk_tokens=100, decode_steps=4).sizes([StepKey(6, 6, 4)]) == [StepKey(6, 6, 4)]


@pytest.mark.parametrize(("slots", "chunk"), [(1, 1), (1, 8), (3, 9), (8, 4)])
def test_the_smallest_lists_are_lists(slots: int, chunk: int) -> None:
    buckets = declare(max_slots=slots, chunk_tokens=chunk)

    assert (buckets.rows, buckets.tokens[-1]) == (slots, max(slots, chunk))
    assert len(buckets.keys()) == len(set(buckets.keys()))


def test_one_size_is_one_program() -> None:
    assert one_size(5).keys() == one_size(5).essential() == [StepKey(5, 5), SlotKey()]


def test_a_menu_pads_up_to_what_is_ready() -> None:
    menu = Menu()
    menu.add([StepKey(64, 8), StepKey(8, 8), StepKey(1, 1), SlotKey(), StepKey(16, 8)])
    before = menu.fit(2)
    menu.add([StepKey(2, 2), StepKey(2, 2, 4), StepKey(8, 8)])

    assert menu.tokens == [1, 2, 8, 16, 64]
    assert (before, menu.fit(2)) == (StepKey(8, 8), StepKey(2, 2))
    assert (menu.most_steps(1), menu.most_steps(3)) == (4, 1)
    assert menu.fit(1, 4) == StepKey(2, 2, 4)


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
