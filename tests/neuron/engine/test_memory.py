"""The memory plan: what fits, what is refused, and that the suggestion would really have helped."""

import attrs
import pytest

from neuron_jax.engine.memory import MIB, DoesNotFitError, PlanRequest, plan_memory, table

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


def test_without_wishes_each_slot_gets_its_share_and_the_context_is_whole() -> None:
    plan = plan_memory(REQUEST)

    assert (plan.pages, plan.max_context) == (1024, 8192)


def test_a_wish_for_pages_is_granted_up_to_what_fits_on_the_grid() -> None:
    assert plan_memory(attrs.evolve(REQUEST, kv=700 * MIB)).pages == 700
    assert plan_memory(attrs.evolve(REQUEST, kv=9000 * MIB)).pages == 2496  # 2500 left, in steps of 64


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
        ({"limit": 900 * MIB, "weights_int8": 0}, "616 MiB more on each device fit"),
    ],
)
def test_a_refusal_names_the_smallest_change(changes: dict[str, int], suggestion: str) -> None:
    with pytest.raises(DoesNotFitError, match="weights 1,000 MiB") as refused:
        plan_memory(attrs.evolve(REQUEST, **changes))

    assert suggestion in refused.value.suggestion


def test_what_is_suggested_fits() -> None:
    tight = attrs.evolve(REQUEST, limit=1600 * MIB, context=1600)

    assert plan_memory(tight).max_context == 1600
