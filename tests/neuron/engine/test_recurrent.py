"""Recurrent layers in a step, row for row against a plain loop; snapshots that no row needs are neither read nor written."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.native.recurrent import FOLLOWS
from models.spec import ParamSpec, RecurrentLayer
from neuron_jax.engine.attention.ragged import ragged
from neuron_jax.engine.recurrent import Snapshots, recur, state_specs
from tests.fakes import quick
from tests.fakes.stepwise import Stepwise

PAGE, SLOTS, SNAPSHOTS = 4, 4, 5
LAYER = RecurrentLayer((ParamSpec((2,), jnp.dtype(jnp.float32), (None,)),))


def update(state: Any, token: Any) -> Any:
    """The state fades and takes the token in; the token gets what both were."""
    (before,) = state
    after = before * 0.5 + token
    return (after,), after + before


def step(told: Any, inputs: Any, cache: Any) -> Any:
    """`told`: start, count, load and save of each row, [4, R]. Rows that follow others are of the same slot."""
    start, count, load, save = told
    slot = jax.lax.cummax(jnp.where(load == FOLLOWS, 0, jnp.arange(told.shape[1], dtype=jnp.int32)))
    rows = ragged({}, slot, start, count, inputs.shape[0])
    where = Snapshots(load, save, PAGE, guesses=True)
    return recur(Stepwise(update), inputs, cache, rows, where)


CASES: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {
    "one begins, one goes on": ([0, 9], [6, 1], [0, 0], [0, 0]),
    "a page ends within a row": ([2, 0], [5, 9], [0, 0], [1, 3]),
    "at its first token": ([8, 3], [4, 1], [0, 0], [2, 4]),
    "not in this step": ([5, 6], [1, 1], [0, 0], [2, 4]),
    "with a snapshot, and leaving one": ([4, 8], [5, 6], [5, 1], [2, 3]),
    "a row without tokens": ([0, 0], [0, 3], [0, 0], [0, 0]),
    "longer than a chunk, which begins within one": ([60, 0], [150, 1], [2, 0], [3, 0]),
    "chunks of two, and one alone": ([0, 70, 5], [130, 60, 1], [0, 0, 1], [2, 4, 5]),
    "as many rows as tokens": ([3, 0, 4, 8], [1, 0, 1, 2], [0, 0, 0, 1], [0, 0, 2, 4]),
    "guesses that follow each other": ([8, 9, 10, 3], [1, 1, 1, 1], [0, -1, -1, 2], [1, 3, 4, 0]),
    "guesses behind a snapshot, beside a prompt": ([5, 6, 0, 2], [1, 1, 70, 1], [4, -1, 0, 0], [0, 2, 1, 0]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_a_plain_loop(case: str) -> None:
    """A row for each token, all rows step by step; else in chunks of which every one begins at a multiple of CHUNK."""
    start, count, load, save = CASES[case]
    rng = np.random.default_rng(0)
    states, kept = (rng.standard_normal((size + 1, 2)).astype(np.float32) for size in (SLOTS, SNAPSHOTS))
    padding = 0 if sum(count) == len(count) else 2
    inputs = rng.standard_normal((sum(count) + padding, 2)).astype(np.float32)
    told, cache = jnp.asarray(CASES[case], jnp.int32), (jnp.asarray(states), jnp.asarray(kept))
    given, (new_states, new_kept) = quick.jit(step)(told, jnp.asarray(inputs), cache)

    place, leader, state = 0, 0, np.zeros(2, np.float32)
    for row, (first, tokens) in enumerate(zip(start, count, strict=True)):
        if tokens == 0:
            continue
        boundary = (first + tokens - 1) // PAGE * PAGE
        if load[row] == FOLLOWS:  # begins with what the row before has left, which is kept
            expected, boundary = state, -1
        else:
            leader = row
            state = kept[load[row]] if load[row] else np.zeros(2, np.float32) if first == 0 else states[row]
            expected = state if boundary == first else None
        for position in range(first, first + tokens):
            before, state = state, state * np.float32(0.5) + inputs[place]
            np.testing.assert_allclose(given[place], state + before, rtol=1e-6)
            expected = state if position + 1 == boundary else expected
            place += 1
        if FOLLOWS not in load[row + 1 : row + 2]:
            np.testing.assert_allclose(new_states[leader], state, rtol=1e-6)
        if save[row]:
            wanted = kept[save[row]] if expected is None else expected
            np.testing.assert_allclose(new_kept[save[row]], wanted, rtol=1e-6)
    untouched = sorted({*range(1, SNAPSHOTS + 1)} - {*save})
    assert np.array_equal(new_kept[np.array(untouched)], kept[np.array(untouched)])


def test_snapshots_are_written_in_place() -> None:
    """A program of a layer with a thousand of them needs no more memory than one with ten."""

    def needed(snapshots: int) -> int:
        shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype) for s in state_specs(LAYER, slots=SLOTS, snapshots=snapshots)]
        inputs, told = jax.ShapeDtypeStruct((SLOTS, 2), jnp.float32), jax.ShapeDtypeStruct((4, SLOTS), jnp.int32)
        program = jax.jit(step, donate_argnums=2).lower(told, inputs, tuple(shapes)).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    assert needed(1000) == needed(10)
