"""The memory plan: what fits, what is refused, that the suggestion would really have helped, and what was measured."""

import attrs
import jax
import jax.numpy as jnp
import pytest

from models.sharding import make_mesh, named_sharding
from neuron_jax.engine.memory import (
    MIB,
    DoesNotFitError,
    PlanRequest,
    ProgramMemory,
    analyse,
    excess,
    held,
    measured_step,
    plan_memory,
    settle,
    table,
)

REQUEST = PlanRequest(
    limit=4000 * MIB,
    weights=1000 * MIB,
    weights_int8=250 * MIB,
    step=100 * MIB,
    runtime=400 * MIB,
    page=MIB,
    page_size=16,
    max_positions=8192,
    max_slots=32,
)


def test_without_options_each_slot_gets_its_share_and_the_context_is_whole() -> None:
    plan = plan_memory(REQUEST)

    assert (plan.pages, plan.max_context) == (1024, 8192)


def test_as_many_pages_as_asked_for_are_granted_up_to_what_fits_on_the_grid() -> None:
    assert plan_memory(attrs.evolve(REQUEST, kv_bytes=700 * MIB)).pages == 700
    assert plan_memory(attrs.evolve(REQUEST, kv_bytes=9000 * MIB)).pages == 2496  # 2500 left, in steps of 64


def test_the_context_shrinks_when_nobody_asked_for_one() -> None:
    plan = plan_memory(attrs.evolve(REQUEST, limit=1600 * MIB))

    assert (plan.pages, plan.max_context) == (64, 1024)


def test_the_table_adds_up() -> None:
    rows = {row.what.split(" (")[0]: row.bytes for row in plan_memory(REQUEST).rows}

    assert rows["total"] == rows["weights"] + rows["step peak"] + rows["runtime"] + rows["KV pages"]
    assert "weights 1,000 MiB" in table(plan_memory(REQUEST).rows)


@pytest.mark.parametrize(
    ("changes", "suggestion"),
    [
        ({"limit": 1600 * MIB, "context": 8192}, "max_context = 1600 fits"),
        ({"limit": 900 * MIB}, "quant = int8 fits"),
        ({"limit": 900 * MIB, "weights_int8": 0}, "616 MiB more on each device would do"),
    ],
)
def test_a_refusal_names_the_smallest_change(changes: dict[str, int], suggestion: str) -> None:
    with pytest.raises(DoesNotFitError, match="weights 1,000 MiB") as refused:
        plan_memory(attrs.evolve(REQUEST, **changes))

    assert suggestion in refused.value.suggestion


def test_what_is_suggested_fits() -> None:
    tight = attrs.evolve(REQUEST, limit=1600 * MIB, context=1600)

    assert plan_memory(tight).max_context == 1600


WIDE = ProgramMemory(argument=900, output=60 * MIB, temp=30 * MIB, alias=50 * MIB, code=2 * MIB)
NARROW = ProgramMemory(argument=900, output=50 * MIB, temp=10 * MIB, alias=50 * MIB, code=MIB)


def test_a_step_is_its_widest_program_and_the_code_of_all() -> None:
    assert measured_step([NARROW, WIDE]) == (30 + 60 - 50 + 2 + 1) * MIB
    assert measured_step([]) == 0


def test_the_settled_table_has_the_measured_step_and_adds_up() -> None:
    plan = plan_memory(REQUEST)
    settled = settle(plan, {"wide": WIDE, "narrow": NARROW}, 50 * MIB)
    rows = {row.what.split(" (")[0]: row.bytes for row in settled.rows}

    assert rows["step peak"] == 43 * MIB
    assert rows["total"] == rows["weights"] + rows["step peak"] + rows["runtime"] + rows["KV pages"]
    assert "step peak (measured; 100 MiB were planned) 43 MiB" in table(settled.rows)


def test_without_a_word_of_the_compiler_the_estimate_stays() -> None:
    plan = plan_memory(REQUEST)

    assert settle(plan, {}, 50 * MIB) == plan


def test_a_program_that_copies_its_state_is_a_bug() -> None:
    """The message says which, and how much of it."""
    with pytest.raises(
        AssertionError, match=r"narrow would copy .* of 52,428,801 bytes .* only 52,428,800 are aliased"
    ):
        settle(plan_memory(REQUEST), {"narrow": NARROW}, 50 * MIB + 1)


def test_a_step_beyond_its_estimate_is_told_with_the_numbers() -> None:
    plan = plan_memory(attrs.evolve(REQUEST, kv_bytes=9000 * MIB))  # 4 MiB are left over

    assert excess(plan, 100 * MIB) is None
    assert excess(plan, 103 * MIB) == "a step takes 103 MiB, 100 MiB were planned for it"
    assert str(excess(plan, 140 * MIB)).endswith(": 36 MiB more than the engine may use; lower kv_mb by that")


def test_what_a_compiled_program_says_is_read() -> None:
    """The donated argument is written in place; the product before it is a temporary or an output."""
    square = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    step = jax.jit(lambda pool, x: (pool.at[0].set(1.0), x @ x), donate_argnums=0)
    memory = analyse(step.lower(square, square).compile())

    assert memory is not None
    assert (memory.argument, memory.alias) == (2 * held(square), held(square))
    assert held(square) <= memory.step < 3 * held(square)


def test_a_sharded_array_is_held_in_parts() -> None:
    mesh = make_mesh(jax.devices("cpu")[:2])
    halves = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=named_sharding(mesh, (None, "kv_heads")))

    assert held((halves, jax.ShapeDtypeStruct((3,), jnp.int8))) == 8 * 3 * 4 + 3


def test_layers_with_a_window_get_pages_for_windows() -> None:
    """However much the others have: twice for each slot, and for the largest step."""
    plan = plan_memory(attrs.evolve(REQUEST, windows=((512, MIB // 4),), step_tokens=256))
    rows = {row.what.split(" (")[0]: row.bytes for row in plan.rows}

    assert plan.groups == (1024, min(1024, 2 * 32 * 33 + 17))
    assert rows["KV pages of layers that see 512 tokens"] == plan.groups[1] * MIB // 4
    assert rows["total"] == sum(size for what, size in rows.items() if what not in ("total", "may use"))
    few = plan_memory(attrs.evolve(REQUEST, windows=((128, MIB // 4),), step_tokens=256, max_slots=4))
    assert few.groups == (512, 2 * 4 * 9 + 17)


def test_recurrent_state_is_planned_for_each_slot_and_for_snapshots() -> None:
    """Snapshots take an eighth of what is left at most; without a prefix cache there are none."""
    asked = attrs.evolve(REQUEST, state=2 * MIB)
    plan, cold = plan_memory(asked), plan_memory(attrs.evolve(asked, prefix_cache=False))
    tight = plan_memory(attrs.evolve(asked, limit=1700 * MIB, max_slots=8))

    assert (plan.snapshots, cold.snapshots) == (64, 0)
    assert next(row.bytes for row in plan.rows if row.what.startswith("recurrent state")) == (33 + 64) * 2 * MIB
    assert tight.snapshots == (200 - 18) // 8 // 2
    assert tight.pages > 0
