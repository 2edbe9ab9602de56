"""The compiled programs: the list is the declaration, the state is donated, and serving adds none."""

import attrs
import jax
import jax.numpy as jnp
import pytest

from neuron_jax.engine.buckets import DecodeKey, ExtendKey, Menu, SeatKey, StepKey, VerifyKey, declare
from neuron_jax.engine.runner import Runner


def test_the_list_names_every_program_once_with_the_essential_ones_first() -> None:
    buckets = declare(max_slots=6, chunk_tokens=100, decode_steps=4, guesses=3)
    keys = buckets.keys()

    assert buckets.rows == (1, 2, 4, 6)
    assert buckets.chunks == (8, 16, 32, 64, 100)
    assert keys[: len(buckets.essential())] == buckets.essential()
    assert len(keys) == len(set(keys)) == 4 * 2 + 5 + 3 + 1


def test_the_essential_programs_serve_anything() -> None:
    essential = declare(max_slots=32, chunk_tokens=256).essential()

    assert {ExtendKey(256), DecodeKey(32, 1), SeatKey()} <= set(essential)


def test_programs_that_skip_padding_serve_every_size_but_are_few() -> None:
    buckets = declare(max_slots=6, chunk_tokens=100, decode_steps=4, guesses=3, exact=True)
    padded = attrs.evolve(buckets, exact=False)

    assert buckets.keys() == [ExtendKey(100), DecodeKey(6, 1), SeatKey(), VerifyKey(4, 3), DecodeKey(6, 4)]
    assert set(buckets.sizes(buckets.keys())) == set(padded.keys())
    assert set(buckets.sizes([DecodeKey(6, 4)])) == {DecodeKey(rows, 4) for rows in (1, 2, 4, 6)}
    assert padded.sizes([DecodeKey(6, 4)]) == [DecodeKey(6, 4)]


@pytest.mark.parametrize(("slots", "chunk"), [(1, 1), (1, 8), (3, 9)])
def test_the_smallest_lists_are_lists(slots: int, chunk: int) -> None:
    buckets = declare(max_slots=slots, chunk_tokens=chunk)

    assert (buckets.rows[-1], buckets.chunks[-1]) == (slots, chunk)
    assert len(buckets.keys()) == len(set(buckets.keys()))


def test_a_menu_pads_up_to_what_is_ready() -> None:
    menu = Menu()
    menu.add([ExtendKey(64), DecodeKey(8, 1), DecodeKey(1, 1), SeatKey(), ExtendKey(16)])
    before = menu.decode(2, 1)
    menu.add([DecodeKey(2, 1), DecodeKey(2, 4), VerifyKey(4, 3), VerifyKey(1, 3)])

    assert menu.chunks == [16, 64]
    assert (before, menu.decode(2, 1)) == (DecodeKey(8, 1), DecodeKey(2, 1))
    assert (menu.most_steps(1), menu.most_steps(3)) == (4, 1)
    assert menu.decode(1, 4) == DecodeKey(2, 4)
    assert [menu.verify(rows) for rows in (1, 2, 5)] == [VerifyKey(1, 3), VerifyKey(4, 3), None]


@pytest.mark.parametrize("key", [DecodeKey(4, 1), DecodeKey(4, 4), ExtendKey(64), VerifyKey(4, 5)])
def test_the_state_is_donated_and_not_copied(runner: Runner, key: StepKey) -> None:
    """alias bytes >= state bytes, and temporaries that do not grow with the pool (openxla/xla#45912)."""
    larger = attrs.evolve(runner.program, shapes=attrs.evolve(runner.program.shapes, pages=1000))
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(larger.abstract_state()))
    memory = larger.lower(key).compile().memory_analysis()

    assert memory.alias_size_in_bytes >= state
    assert memory.temp_size_in_bytes == runner.compiler.ready[key].memory_analysis().temp_size_in_bytes


def test_what_is_compiled_outside_of_the_plan_is_counted(runner: Runner) -> None:
    before = runner.compiler.unplanned
    jax.jit(lambda x: x * 3 + 1)(jnp.zeros(7))

    assert runner.compiler.unplanned > before
