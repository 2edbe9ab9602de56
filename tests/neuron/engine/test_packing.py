"""The packed arrays: what goes in comes out, and a line of the mirror never shows what its last owner left."""

import jax.numpy as jnp
import numpy as np
import pytest

from neuron_jax.engine.batch import Row
from neuron_jax.engine.buckets import StepKey
from neuron_jax.engine.packing import (
    DRAWS,
    FOREVER,
    GUESSED,
    LOGPROBS,
    NEWS,
    PARAMS,
    SILENT,
    Mirror,
    Rows,
    line_words,
    needs_slot_update,
    pack_logprobs,
    params_of,
    unpack,
    unpack_logprobs,
    with_slot,
)
from neuron_jax.engine.requests import Request, from_submit
from neuron_jax.engine.sampler import DRAW, FULL, GREEDY, MAX_ALTERNATIVES, MAX_BIAS, MOST_COUNTED, Past, SamplerOutput
from neuron_jax.workers.frames import Sampling, Submit

SLOTS, TABLE, VOCAB = 4, 8, 300


def request(slot: int, pages: list[int], **changes: object) -> Request:
    fields = {name: changes.pop(name) for name in ("stop_ids", "min_tokens") if name in changes}
    submit = Submit(1, [5, 6, 7], Sampling(**{"temperature": 0.0} | changes), 20, **fields)
    made = from_submit(submit, arrival=1, max_context=100)
    made.slot, made.pages = slot, [pages]
    return made


def row(
    of: Request, start: int, count: int, draws: int = 1, *, guesses: tuple[int, ...] = (), fed: bool = False
) -> Row:
    return Row(of, of.stay, start, count, draws, guesses, fed)


class Device:
    """What a device makes of the words it is sent."""

    def __init__(self) -> None:
        self.mirror = Mirror(SLOTS, TABLE)
        self.lines = jnp.zeros((SLOTS + 1, line_words(TABLE)), jnp.int32)

    def step(self, key: StepKey, *rows: Row) -> tuple[Rows, list[int]]:
        news = [self.mirror.note(request) for request in dict.fromkeys(row.request for row in rows)]
        packed = self.mirror.pack(rows, key, news)
        self.lines, told, tokens = unpack(jnp.asarray(packed), key, self.lines)
        return told, tokens.tolist()

    def pages(self, slot: int) -> list[int]:
        return self.lines[slot, PARAMS:].tolist()


def test_rows_of_all_kinds_stand_side_by_side() -> None:
    """One that decodes, one that is guessed for, prompts that draw and that do not, and padding."""
    device = Device()
    old, sure, fed, long = (request(slot, [slot + 1]) for slot in (3, 0, 1, 2))
    rows, tokens = device.step(
        StepKey(16, 8),
        row(old, 3, 1),
        row(sure, 4, 3, 3, guesses=(8, 9)),
        row(fed, 1, 2, fed=True),
        row(long, 0, 2, 0, fed=True),
    )

    assert rows.slot.tolist() == [3, 0, 0, 0, 1, 2, SLOTS, SLOTS]
    assert rows.start.tolist() == [3, 4, 5, 6, 1, 0, 0, 0]
    assert rows.count.tolist() == [1, 1, 1, 1, 2, 2, 0, 0]
    assert rows.draws.tolist() == [DRAWS, DRAWS, GUESSED, GUESSED, DRAWS, SILENT, SILENT, SILENT]
    assert tokens == [-1, -1, 8, 9, 6, 7, 5, 6, *[0] * 8]


def test_a_row_of_several_steps_has_its_newest_token_and_how_many_it_wants() -> None:
    rows, tokens = Device().step(StepKey(4, 4, 4), row(request(1, [2]), 3, 4, 4), row(request(2, [3]), 9, 2, 2))

    assert (rows.count.tolist(), tokens) == ([4, 2, 0, 0], [-1, -1, 0, 0])


def test_the_device_knows_every_parameter_of_a_row() -> None:
    """Floats and unsigned words by their bits; padding is greedy."""
    device = Device()
    hot = request(2, [7, 8], temperature=0.5, top_p=0.25, seed=2**64 - 2, top_k=9, min_p=0.125)
    sore = request(0, [3], presence_penalty=1.5, frequency_penalty=-0.5, repetition_penalty=1.25)
    rows, _ = device.step(StepKey(4, 4), row(hot, 17, 1), row(sore, 3, 1))
    params = params_of(device.lines, rows.slot)

    assert (device.pages(2), device.pages(0)) == ([7, 8] + [0] * 6, [3] + [0] * 7)
    assert params.slot.tolist() == [2, 0, SLOTS, SLOTS]
    assert params.need.tolist() == [DRAW, FULL, GREEDY, GREEDY]
    assert params.temperature.tolist() == [0.5, 0, 0, 0]
    assert (params.top_p[0], params.top_k[0], params.min_p[0]) == (0.25, 9, 0.125)
    assert (int(params.seed_low[0]), int(params.seed_high[0])) == (2**32 - 2, 2**32 - 1)
    assert (params.presence[1], params.frequency[1], params.repetition[1]) == (1.5, -0.5, 1.25)
    assert params.biased.tolist() == [0, 1, 0, 0]


def test_only_news_goes_up() -> None:
    device = Device()
    one = request(1, [4], temperature=0.5)
    device.step(StepKey(1, 1), row(one, 3, 1))
    assert len(device.mirror.note(one)) == 0
    one.pages[0] += [9, 2]

    assert len(device.mirror.note(one)) == 2
    one.pages[0] += [6]
    device.step(StepKey(1, 1), row(one, 4, 1))
    assert device.pages(1)[3] == 6


def test_a_slot_s_new_owner_has_its_own_line() -> None:
    """Another request, or the same one once it was preempted; but a request that stays is not new."""
    device = Device()
    mirror = device.mirror
    first, second = request(1, [4, 5, 6], temperature=0.7), request(1, [8])
    assert mirror.is_new(first)
    mirror.note(first)
    assert not mirror.is_new(first)
    first.stay += 1
    first.pages = [[7]]
    assert mirror.is_new(first)
    device.step(StepKey(1, 1), row(first, 3, 1))
    assert device.pages(1)[:1] == [7]
    rows, _ = device.step(StepKey(1, 1), row(second, 3, 1))

    assert device.pages(1)[:1] == [8]
    assert params_of(device.lines, rows.slot).temperature.tolist() == [0]


def test_there_is_room_for_a_new_request_in_every_step() -> None:
    assert NEWS > PARAMS


def test_what_was_packed_does_not_change_with_the_mirror() -> None:
    """The device may still be reading it."""
    mirror = Mirror(SLOTS, TABLE)
    first = request(1, [4])
    packed = mirror.pack([row(first, 3, 1)], StepKey(2, 2), [mirror.note(first)])
    before = packed.copy()
    second = request(1, [5], seed=3)
    mirror.pack([row(second, 9, 1)], StepKey(2, 2), [mirror.note(second)])

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
def test_only_penalties_biases_and_bans_need_more_than_a_row(changes: dict, needed: bool) -> None:
    assert needs_slot_update(request(0, [], **changes)) == needed


def test_a_slot_holds_biases_bans_and_what_was_said() -> None:
    one = request(1, [7], logit_bias={3: -1.5, 4: 100.0}, stop_ids=(4,), min_tokens=6)
    one.tokens += [6, 9, 9]
    zero = Past(
        *(jnp.zeros((3, width), dtype) for width, dtype in ((VOCAB, jnp.int16), (VOCAB, jnp.bool_))),
        *[jnp.zeros((3, MAX_BIAS), dtype) for dtype in (jnp.int32, jnp.float32, jnp.uint32)],
    )
    mirror = Mirror(2, TABLE)
    mirror.note(one)
    past, lines = with_slot(
        zero, jnp.zeros((3, line_words(TABLE)), jnp.int32), jnp.asarray(mirror.fill_slot(one, VOCAB))
    )

    assert np.flatnonzero(past.in_prompt[1]).tolist() == [5, 6, 7]
    assert {i: int(past.generated[1, i]) for i in np.flatnonzero(past.generated[1])} == {6: 1, 9: 2}
    assert past.bias_ids[1, :4].tolist() == [3, 4, 4, 0]
    assert past.bias[1, :4].tolist() == [-1.5, 100.0, -np.inf, 0.0]
    assert past.bias_until[1, :4].tolist() == [FOREVER, FOREVER, 9, 0]
    assert lines[1, PARAMS] == 7
    assert not any(np.asarray(part)[[0, 2]].any() for part in past)


def test_a_count_that_is_too_large_is_the_most_that_is_counted() -> None:
    """Of a request that comes back to its slot with a token said 40,000 times."""
    again = request(0, [4], frequency_penalty=0.5)
    again.tokens += [9] * 40_000
    zero = Past(
        *(jnp.zeros((1, VOCAB), dtype) for dtype in (jnp.int16, jnp.bool_)),
        *[jnp.zeros((1, MAX_BIAS), dtype) for dtype in (jnp.int32, jnp.float32, jnp.uint32)],
    )
    mirror = Mirror(1, TABLE)
    mirror.note(again)
    past, _ = with_slot(zero, jnp.zeros((2, line_words(TABLE)), jnp.int32), jnp.asarray(mirror.fill_slot(again, VOCAB)))

    assert int(past.generated[0, 9]) == MOST_COUNTED


def test_log_probabilities_travel_by_their_bits() -> None:
    ids = jnp.arange(MAX_ALTERNATIVES, dtype=jnp.int32)[None] + 7
    logprobs = -jnp.arange(MAX_ALTERNATIVES, dtype=jnp.float32)[None] / 3
    packed = np.asarray(pack_logprobs(SamplerOutput(jnp.asarray([8], jnp.int32), jnp.asarray([-0.3]), ids, logprobs)))

    assert packed.shape == (1, LOGPROBS)
    logprob, likeliest = unpack_logprobs(packed[0], 2)
    assert logprob == pytest.approx(-0.3)
    assert [(a.token, a.logprob) for a in likeliest] == [(7, 0.0), (8, pytest.approx(-1 / 3))]
