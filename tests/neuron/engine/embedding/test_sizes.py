"""Which sizes there are, and how texts fill one: nothing is lost, nothing twice, and little is computed for nothing."""

import random

import pytest

from neuron_jax.engine.embedding.sizes import CallSize, choose, declare, fill

SIZES = declare(512, 1024)


def test_a_few_sizes_do() -> None:
    """Each is about four times the next smaller one; one text alone has a row of its own in each width."""
    assert [(size.rows, size.width) for size in SIZES] == [(1, 32), (1, 128), (1, 512), (8, 128), (2, 512)]
    assert [size.places for size in declare(8192, 1024)] == [32, 128, 512, 1024, 1024, 2048, 8192]


@pytest.mark.parametrize("longest", [1, 31, 32, 33, 500, 514])
def test_a_text_of_any_length_has_a_size(longest: int) -> None:
    """The longest stands in a row to its own measure."""
    sizes = declare(longest, 1024)

    assert max(size.width for size in sizes) == longest
    assert all(choose(sizes, [length])[0].width >= length for length in (1, longest))


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ([3], CallSize(1, 32)),
        ([20, 12], CallSize(1, 32)),
        ([20, 13], CallSize(1, 128)),
        ([33], CallSize(1, 128)),
        ([100, 100], CallSize(1, 512)),
        ([128] * 4, CallSize(1, 512)),
        ([128] * 5, CallSize(8, 128)),
        ([20] * 500, CallSize(8, 128)),
        ([400, 300], CallSize(2, 512)),
        ([400] + [20] * 500, CallSize(2, 512)),
    ],
)
def test_the_smallest_size_for_all_or_the_one_that_takes_most(lengths: list[int], size: CallSize) -> None:
    """Of the narrowest width for the first text."""
    assert choose(SIZES, lengths)[0] == size


def test_rows_hold_what_they_hold() -> None:
    """Whatever comes: the first text is in, each text at most once, no row is too full; where one is left out, its length
    was in no row to be had."""
    rng = random.Random(7)
    for _ in range(300):
        lengths = sorted((rng.randint(1, rng.choice([8, 60, 512])) for _ in range(rng.randint(1, 90))), reverse=True)
        size, rows = choose(SIZES, lengths)
        taken = [place for row in rows for place in row]
        room = [size.width - sum(lengths[place] for place in row) for row in rows]

        assert 0 in taken
        assert len(taken) == len(set(taken)) <= size.texts
        assert len(rows) == size.rows
        assert min(room) >= 0
        left = [lengths[place] for place in range(len(lengths)) if place not in set(taken)]
        assert len(taken) == size.texts or all(length > max(room) for length in left)


def test_a_thousand_sentences_waste_little() -> None:
    """Of some twenty tokens each: of the places of all calls nine in ten hold a token."""
    rng = random.Random(3)
    lengths = sorted((rng.randint(6, 45) for _ in range(1000)), reverse=True)
    places, tokens = 0, sum(lengths)
    while lengths:
        size, rows = choose(SIZES, lengths)
        taken = {place for row in rows for place in row}
        lengths = [length for place, length in enumerate(lengths) if place not in taken]
        places += size.places

    assert tokens / places > 0.9


def test_a_call_has_room_for_so_many_texts_only() -> None:
    """However short they are."""
    size = CallSize(1, 128)

    assert size.texts == 16
    assert fill(size, [1] * 100) == [list(range(16))]
