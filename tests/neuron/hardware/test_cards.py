"""The cards' figures agree with each other, and a card is found by what people call it."""

import pytest

from neuron_jax.hardware.cards import UnknownCardError, card, cards

PER_CLOCK = {64, 128, 256, 512, 1024}
"""Multiply-adds of bfloat16 that a tensor core does at a time, from GeForce to B200."""


@pytest.mark.parametrize("key", list(cards()))
def test_rates_are_what_so_many_cores_make_at_that_clock(key: str) -> None:
    one = cards()[key]
    cycles = 8 * one.cores * one.clock  # of four tensor cores a multiprocessor, two operations a multiply-add
    # Some data sheets reckon tensor cores at a lower clock than the boost.
    assert any(0.9 * rate < one.rates["bfloat16"] / cycles < 1.01 * rate for rate in PER_CLOCK)
    assert 1.99 < one.rates["int8"] / one.rates["bfloat16"] < 4.01
    assert ("fp8" in one.rates) == (one.capability >= (8, 9))
    assert one.rates["float32"] == pytest.approx(2 * one.cores * one.generation.units * one.clock, rel=0.02)
    assert one.source


def test_the_smallest_come_first() -> None:
    memory = [one.memory for one in cards().values()]

    assert memory == sorted(memory)


@pytest.mark.parametrize(
    ("name", "key"), [("H100", "h100"), ("a100", "a100-80"), ("nvidia geforce rtx 4090", "4090"), (" l4 ", "l4")]
)
def test_names_that_people_use(name: str, key: str) -> None:
    assert card(name).key == key


def test_every_name_means_one_card() -> None:
    names = [name for one in cards().values() for name in (one.key, one.name.lower(), *one.aliases)]

    assert len(names) == len(set(names))


def test_an_unknown_card_is_answered_with_the_known() -> None:
    with pytest.raises(UnknownCardError, match=r"'h1000'; known are 3060, .*h100"):
        card("h1000")
