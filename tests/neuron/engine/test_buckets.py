"""The list of programs and the menu of those that are ready, as data: nothing is compiled here."""

import pytest

from neuron_jax.engine.buckets import Draws, Menu, SlotKey, StepKey, declare, one_size


def test_the_list_names_every_program_once_with_the_essential_ones_first() -> None:
    buckets = declare(max_slots=6, chunk_tokens=100, decode_steps=4, guesses=3)
    keys = buckets.keys()

    assert buckets.rows == 6 + 3 * 4
    assert buckets.tokens == (1, 2, 4, 6, 8, 16, 18, 32, 64, 100)
    assert keys[: len(buckets.essential())] == buckets.essential()
    assert len(keys) == len(set(keys)) == 10 + 4 + 1


def test_a_step_of_few_tokens_has_a_row_for_each() -> None:
    keys = declare(max_slots=6, chunk_tokens=32).keys()

    assert {key.tokens: key.rows for key in keys if key != SlotKey()} == {1: 1, 2: 2, 4: 4, 6: 6, 8: 6, 16: 6, 32: 6}


def test_the_essential_programs_serve_anything() -> None:
    """The largest, one stream, all streams, a middling prompt; where no prompt is larger than all streams, fewer."""
    large, small = declare(max_slots=32, chunk_tokens=256), declare(max_slots=8, chunk_tokens=4)

    assert large.essential() == [StepKey(256, 32), StepKey(1, 1), StepKey(32, 32), StepKey(128, 32), SlotKey()]
    assert small.essential() == [StepKey(8, 8), StepKey(1, 1), SlotKey()]


def test_programs_that_skip_padding_serve_every_size_but_are_few() -> None:
    buckets = declare(max_slots=6, chunk_tokens=100, decode_steps=4, guesses=3, exact=True)

    assert buckets.keys() == [StepKey(100, 18), StepKey(18, 18), SlotKey(), StepKey(6, 6, 4)]
    assert set(range(1, 9)) | {18, 96, 100} <= set(buckets.tokens)
    assert {key.tokens for key in buckets.sizes(buckets.keys()) if key != SlotKey()} == set(buckets.tokens)
    assert set(buckets.sizes([StepKey(6, 6, 4)])) == {StepKey(rows, rows, 4) for rows in range(1, 7)}
    assert declare(max_slots=6, chunk_tokens=100, decode_steps=4).sizes([StepKey(6, 6, 4)]) == [StepKey(6, 6, 4)]


def test_what_has_a_row_for_each_token_is_computed_by_the_small_program() -> None:
    """And what makes several tokens by the one that does, be it only two."""
    buckets = declare(max_slots=6, chunk_tokens=100, decode_steps=2, guesses=3, exact=True)

    assert [buckets.program(StepKey(tokens, min(tokens, 18))).tokens for tokens in (1, 18, 20)] == [18, 18, 100]
    assert buckets.program(StepKey(2, 2, 2)) == StepKey(6, 6, 2)
    assert declare(max_slots=6, chunk_tokens=100, decode_steps=2).keys().count(StepKey(6, 6, 2)) == 1


def test_programs_without_branches_are_of_several_kinds_and_those_that_do_everything_come_first() -> None:
    buckets = declare(max_slots=4, chunk_tokens=8, decode_steps=4, by_draws=True)
    every = buckets.keys()
    keys = [key for key in every if isinstance(key, StepKey)]

    assert buckets.essential() == [
        StepKey(8, 4, 1, Draws.FULL),
        *(StepKey(n, n, 1, Draws.FULL) for n in (1, 4)),
        SlotKey(),
    ]
    assert [key.draws for key in keys if key.tokens == key.rows == 2 and key.steps == 1] == list(Draws)[:3]
    assert {key.draws for key in keys if key.tokens == 8} == {Draws.PLAIN, Draws.FULL}
    assert {key.draws for key in keys if key.steps == 4} == {Draws.PLAIN, Draws.CUT}
    assert len(keys) == len(set(keys)) == 3 * 3 + 2 + 3 * 2


def test_a_menu_has_what_can_draw_so_or_more() -> None:
    menu = Menu()
    menu.add([StepKey(8, 8, 1, Draws.FULL), StepKey(2, 2, 1, Draws.PLAIN), StepKey(2, 2, 4, Draws.PLAIN)])
    before = menu.fit(1, draws=Draws.CUT)
    menu.add([StepKey(2, 2, 1, Draws.CUT), StepKey(2, 2, 4, Draws.CUT)])

    assert (before, menu.fit(1, draws=Draws.CUT)) == (StepKey(8, 8, 1, Draws.FULL), StepKey(2, 2, 1, Draws.CUT))
    assert menu.fit(1) == StepKey(2, 2, 1, Draws.PLAIN)
    assert [menu.most_steps(2, draws) for draws in list(Draws)[:3]] == [4, 4, 1]
    assert menu.tokens == [2, 8]


@pytest.mark.parametrize(("slots", "chunk"), [(1, 1), (1, 8), (3, 9), (8, 4)])
def test_the_smallest_lists_are_lists(slots: int, chunk: int) -> None:
    buckets = declare(max_slots=slots, chunk_tokens=chunk)

    assert (buckets.rows, buckets.tokens[-1]) == (slots, max(slots, chunk))
    assert len(buckets.keys()) == len(set(buckets.keys()))
    assert {key.steps for key in buckets.sizes(buckets.keys()) if key != SlotKey()} == {1}


def test_one_size_is_one_program() -> None:
    """Nothing is guessed, and what is padding is computed."""
    it = one_size(5)

    assert it.keys() == it.essential() == [StepKey(5, 5), SlotKey()]
    assert (it.guesses, it.exact) == (0, False)


def test_a_menu_pads_up_to_what_is_ready() -> None:
    menu = Menu()
    menu.add([StepKey(64, 8), StepKey(8, 8), StepKey(1, 1), SlotKey(), StepKey(16, 8)])
    before = menu.fit(2)
    menu.add([StepKey(2, 2), StepKey(2, 2, 4), StepKey(8, 8)])

    assert menu.tokens == [1, 2, 8, 16, 64]
    assert (before, menu.fit(2)) == (StepKey(8, 8), StepKey(2, 2))
    assert [menu.most_steps(rows) for rows in (1, 2, 3)] == [4, 4, 1]
    assert menu.fit(1, 4) == StepKey(2, 2, 4)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (StepKey(8, 8), "step 8"),
        (StepKey(64, 8), "step 64 of 8 rows"),
        (StepKey(2, 2, 4), "step 2x4"),
        (StepKey(2, 1, 2), "step 2x2"),
        (StepKey(64, 8, 1, Draws.CUT), "step 64 of 8 rows cut"),
        (SlotKey(), "slot"),
    ],
)
def test_a_program_has_a_name(key: object, words: str) -> None:
    """As it stands in the log and in metrics."""
    assert str(key) == words


@pytest.mark.parametrize(("guesses", "slots", "rows"), [(0, 6, 6), (3, 6, 18), (3, 4, 16), (3, 2, 8)])
def test_rows_are_streams_and_the_guesses_for_a_few_of_them(guesses: int, slots: int, rows: int) -> None:
    """For four at most."""
    assert declare(max_slots=slots, chunk_tokens=8, guesses=guesses).rows == rows
