"""The packed arrays: what goes in comes out, and a line of the mirror never shows what its last owner left."""

import jax.numpy as jnp
import numpy as np
import pytest

from neuron_jax.engine.batch import Row
from neuron_jax.engine.packing import (
    FOREVER,
    LOGPROBS,
    Mirror,
    needs_seat,
    pack_logprobs,
    pack_seat,
    seated,
    unpack_logprobs,
    unpack_rows,
)
from neuron_jax.engine.requests import Request, from_submit
from neuron_jax.engine.sampler import DRAW, FULL, GREEDY, MAX_ALTERNATIVES, MAX_BIAS, MOST_COUNTED, Drawn, Past
from neuron_jax.workers.frames import Sampling, Submit

SLOTS, TABLE, VOCAB = 4, 8, 300


def request(slot: int, pages: list[int], **changes: object) -> Request:
    fields = {name: changes.pop(name) for name in ("stop_ids", "min_tokens") if name in changes}
    submit = Submit(1, [5, 6, 7], Sampling(**{"temperature": 0.0} | changes), 20, **fields)
    made = from_submit(submit, arrival=1, max_context=100)
    made.slot, made.pages = slot, pages
    return made


def row(of: Request, start: int, count: int, draws: int = 1) -> Row:
    return Row(of, of.stay, start, count, draws)


def test_together_every_token_is_a_line() -> None:
    """Of a prompt each with its token, of which the last draws; and one that only the device knows."""
    mirror = Mirror(SLOTS, TABLE)
    fed, decoding = request(1, [2]), request(3, [4])
    for each in (fed, decoding):
        mirror.seat(each)
    packed = jnp.asarray(mirror.together([row(decoding, 3, 1), row(fed, 1, 2)], 5))
    rows = unpack_rows(packed[:, :-1])

    assert packed[:, -1].tolist() == [-1, 6, 7, 0, 0]
    assert rows.start.tolist() == [3, 1, 2, 0, 0]
    assert (rows.count.tolist(), rows.draws.tolist()) == ([1, 1, 1, 0, 0], [1, 0, 1, 0, 0])
    assert rows.params.slot.tolist() == [3, 1, 1, SLOTS, SLOTS]
    assert rows.table[:, 0].tolist() == [4, 2, 2, 0, 0]


def test_a_decode_step_is_its_rows_and_padding() -> None:
    """Every parameter in its column, floats and unsigned words by their bits; padding is greedy and touches nothing."""
    mirror = Mirror(SLOTS, TABLE)
    hot = request(2, [7, 8], temperature=0.5, top_p=0.25, seed=2**64 - 2, top_k=9, min_p=0.125)
    sore = request(0, [3], presence_penalty=1.5, frequency_penalty=-0.5, repetition_penalty=1.25)
    for each in (hot, sore):
        mirror.seat(each)

    rows = unpack_rows(jnp.asarray(mirror.decode([row(hot, 17, 4, 4), row(sore, 3, 1)], 4)))

    assert rows.start.tolist() == [17, 3, 0, 0]
    assert rows.count.tolist() == [4, 1, 0, 0]
    assert rows.table.tolist() == [[7, 8] + [0] * 6, [3] + [0] * 7, [0] * 8, [0] * 8]
    params = rows.params
    assert params.slot.tolist() == [2, 0, SLOTS, SLOTS]
    assert params.need.tolist() == [DRAW, FULL, GREEDY, GREEDY]
    assert params.temperature.tolist() == [0.5, 0, 0, 0]
    assert (params.top_p[0], params.top_k[0], params.min_p[0]) == (0.25, 9, 0.125)
    assert (int(params.seed_low[0]), int(params.seed_high[0])) == (2**32 - 2, 2**32 - 1)
    assert (params.presence[1], params.frequency[1], params.repetition[1]) == (1.5, -0.5, 1.25)
    assert params.biased.tolist() == [0, 1, 0, 0]


def test_a_chunk_is_its_row_and_its_tokens() -> None:
    mirror = Mirror(SLOTS, TABLE)
    one = request(1, [4])
    mirror.seat(one)
    packed = mirror.extend(row(one, 1, 2), 8)
    rows = unpack_rows(jnp.asarray(packed[None, :-8]))

    assert packed[-8:].tolist() == [6, 7, 0, 0, 0, 0, 0, 0]
    assert (int(rows.start[0]), int(rows.count[0]), int(rows.draws[0])) == (1, 2, 1)
    assert rows.table[0].tolist() == [4] + [0] * 7


def test_guesses_stand_behind_their_rows() -> None:
    mirror = Mirror(SLOTS, TABLE)
    one, two = request(1, [4]), request(3, [6])
    for each in (one, two):
        mirror.seat(each)
    guessed = Row(one, one.stay, 3, 3, 3, [9, 8])
    packed = mirror.verify([guessed, row(two, 7, 1)], 4, 3)

    assert (packed[:2, :-3] == mirror.decode([guessed, row(two, 7, 1)], 2)).all()
    assert packed[:, -3:].tolist() == [[9, 8, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_pages_are_noted_as_they_are_granted() -> None:
    mirror = Mirror(SLOTS, TABLE)
    one = request(1, [4])
    mirror.seat(one)
    mirror.decode([row(one, 3, 1)], 1)
    one.pages += [9, 2]

    assert unpack_rows(jnp.asarray(mirror.decode([row(one, 4, 1)], 1))).table[0].tolist() == [4, 9, 2] + [0] * 5


def test_a_slot_s_new_owner_starts_from_nothing() -> None:
    """Another request, or the same one once it was preempted; but a request that stays is not seated twice."""
    mirror = Mirror(SLOTS, TABLE)
    first, second = request(1, [4, 5, 6], temperature=0.7), request(1, [8])
    assert mirror.seat(first)
    mirror.decode([row(first, 3, 1)], 1)
    assert not mirror.seat(first)
    first.stay += 1
    first.pages = [7]
    assert mirror.seat(first)
    assert unpack_rows(jnp.asarray(mirror.decode([row(first, 3, 1)], 1))).table[0].tolist() == [7] + [0] * 7
    assert mirror.seat(second)

    rows = unpack_rows(jnp.asarray(mirror.decode([row(second, 3, 1)], 1)))

    assert rows.table[0].tolist() == [8] + [0] * 7
    assert rows.params.temperature[0] == 0


def test_what_was_packed_does_not_change_with_the_mirror() -> None:
    """The device may still be reading it."""
    mirror = Mirror(SLOTS, TABLE)
    first = request(1, [4])
    mirror.seat(first)
    packed = mirror.decode([row(first, 3, 1)], 2)
    before = packed.copy()
    mirror.seat(request(1, [5], seed=3))
    mirror.decode([row(request(1, [5], seed=3), 9, 1)], 2)

    assert (packed == before).all()


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, False),
        ({"logprobs": 3, "temperature": 1.0}, False),
        ({"stop_ids": (4,)}, False),
        ({"stop_ids": (4,), "min_tokens": 2}, True),
        ({"logit_bias": {3: 1.0}}, True),
        ({"repetition_penalty": 1.1}, True),
    ],
)
def test_only_penalties_biases_and_bans_need_a_seat(changes: dict, needed: bool) -> None:
    assert needs_seat(request(0, [], **changes)) == needed


def test_a_seat_holds_biases_bans_and_what_was_said() -> None:
    one = request(2, [], logit_bias={3: -1.5, 4: 100.0}, stop_ids=(4,), min_tokens=6)
    one.tokens += [6, 9, 9]
    zero = Past(
        *(jnp.zeros((3, width), dtype) for width, dtype in ((VOCAB, jnp.int16), (VOCAB, jnp.bool_))),
        *[jnp.zeros((3, MAX_BIAS), dtype) for dtype in (jnp.int32, jnp.float32, jnp.uint32)],
    )
    past = seated(zero, jnp.asarray(pack_seat(one, VOCAB)))

    assert np.flatnonzero(past.in_prompt[2]).tolist() == [5, 6, 7]
    assert {i: int(past.generated[2, i]) for i in np.flatnonzero(past.generated[2])} == {6: 1, 9: 2}
    assert past.bias_ids[2, :4].tolist() == [3, 4, 4, 0]
    assert past.bias[2, :4].tolist() == [-1.5, 100.0, -np.inf, 0.0]
    assert past.bias_until[2, :4].tolist() == [FOREVER, FOREVER, 9, 0]
    assert not any(np.asarray(part[:2]).any() for part in past)


def test_a_count_that_is_too_large_is_the_most_that_is_counted() -> None:
    """Of a request that comes back to its slot with a token said 40,000 times."""
    again = request(0, [4], frequency_penalty=0.5)
    again.tokens += [9] * 40_000
    past = Past(
        *(jnp.zeros((1, VOCAB), dtype) for dtype in (jnp.int16, jnp.bool_)),
        *[jnp.zeros((1, MAX_BIAS), dtype) for dtype in (jnp.int32, jnp.float32, jnp.uint32)],
    )

    assert int(seated(past, jnp.asarray(pack_seat(again, VOCAB))).generated[0, 9]) == MOST_COUNTED


def test_log_probabilities_travel_by_their_bits() -> None:
    ids = jnp.arange(MAX_ALTERNATIVES, dtype=jnp.int32)[None] + 7
    logprobs = -jnp.arange(MAX_ALTERNATIVES, dtype=jnp.float32)[None] / 3
    packed = np.asarray(pack_logprobs(Drawn(jnp.asarray([8], jnp.int32), jnp.asarray([-0.3]), ids, logprobs)))

    assert packed.shape == (1, LOGPROBS)
    logprob, likeliest = unpack_logprobs(packed[0], 2)
    assert logprob == pytest.approx(-0.3)
    assert [(a.token, a.logprob) for a in likeliest] == [(7, 0.0), (8, pytest.approx(-1 / 3))]
