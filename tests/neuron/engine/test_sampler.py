"""The sampler against plain NumPy, its noise against published vectors, and its draws against the distribution they claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neuron_jax.engine import sampler
from neuron_jax.engine.noise import gumbel, threefry2x32
from neuron_jax.engine.sampler import DRAW, FULL, GREEDY, MAX_BIAS, MOST_COUNTED, Past, RowParams
from tests.fakes import quick

VOCAB = 1000
draw, sample = quick.jit(sampler.draw), quick.jit(sampler.sample)


def row_params(rows: int, **changes: object) -> RowParams:
    fields = {
        "slot": np.arange(rows, dtype=np.int32),
        "position": np.full(rows, 7, np.uint32),
        "seed_low": np.arange(rows, dtype=np.uint32),
        "seed_high": np.zeros(rows, np.uint32),
        "temperature": np.ones(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "min_p": np.zeros(rows, np.float32),
        "presence": np.zeros(rows, np.float32),
        "frequency": np.zeros(rows, np.float32),
        "repetition": np.ones(rows, np.float32),
        "biased": np.zeros(rows, np.int32),
        "need": np.full(rows, DRAW, np.int32),
        "full_until": np.zeros(rows, np.uint32),
        "masked": np.zeros(rows, np.int32),
    }
    for name, value in changes.items():
        fields[name] = np.broadcast_to(np.asarray(value, fields[name].dtype), fields[name].shape)
    return RowParams(**{name: jnp.asarray(value) for name, value in fields.items()})


def no_past(slots: int) -> Past:
    return Past(
        generated=jnp.zeros((slots, VOCAB), jnp.int16),
        in_prompt=jnp.zeros((slots, VOCAB), jnp.bool_),
        bias_ids=jnp.zeros((slots, MAX_BIAS), jnp.int32),
        bias=jnp.zeros((slots, MAX_BIAS), jnp.float32),
        bias_until=jnp.zeros((slots, MAX_BIAS), jnp.uint32),
    )


def some_logits(rows: int, *, peak: float = 3.0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((rows, VOCAB)) * peak, jnp.float32)


def kept(logits: np.ndarray, *, top_k: int, top_p: float, min_p: float, temperature: float) -> set[int]:
    """The ids that may be drawn, by sorting, in float64."""
    scaled = logits.astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    if top_k:
        order = order[:top_k]
    p = np.exp(scaled[order] - scaled.max())
    p /= p.sum()
    if top_p < 1:
        order = order[: int(np.searchsorted(np.cumsum(p), top_p)) + 1]
    floor = scaled.max() + np.log(min_p) if min_p else -np.inf
    return {int(i) for i in order if scaled[i] >= floor}


def test_threefry_gives_the_published_vectors() -> None:
    """Known answers of Random123's kat_vectors for threefry2x32 with 20 rounds."""
    word = lambda x: jnp.asarray([x], jnp.uint32)
    zero = threefry2x32((word(0), word(0)), (word(0), word(0)))
    ones = threefry2x32((word(0xFFFFFFFF),) * 2, (word(0xFFFFFFFF),) * 2)
    pi = threefry2x32((word(0x13198A2E), word(0x03707344)), (word(0x243F6A88), word(0x85A308D3)))

    assert [int(x[0]) for x in zero] == [0x6B200159, 0x99BA4EFE]
    assert [int(x[0]) for x in ones] == [0x1CB996FC, 0xBB002BE7]
    assert [int(x[0]) for x in pi] == [0xC4923A9C, 0x483DF7A0]


def test_noise_of_a_subset_is_the_noise_of_the_whole() -> None:
    seed, position = (jnp.asarray([5], jnp.uint32), jnp.asarray([0], jnp.uint32)), jnp.asarray([3], jnp.uint32)
    every = gumbel(seed, position, jnp.arange(50, dtype=jnp.uint32)[None])
    some = gumbel(seed, position, jnp.asarray([[40, 3]], jnp.uint32))

    assert (np.asarray(some)[0] == np.asarray(every)[0, [40, 3]]).all()


def test_no_noise_is_infinite() -> None:
    """All 24 bits of this word are ones, which float32 rounds to 1, whose logarithm's logarithm is not finite."""
    zero = jnp.zeros(1, jnp.uint32)
    noise = gumbel((zero, zero), jnp.asarray([321], jnp.uint32), jnp.asarray([[37733]], jnp.uint32))

    assert float(noise[0, 0]) == pytest.approx(24 * np.log(2), rel=1e-5)


@pytest.mark.parametrize("peak", [0.05, 1.0, 4.0])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "temperature"),
    [
        (0, 1.0, 0.0, 1.0),
        (5, 1.0, 0.0, 1.0),
        (300, 1.0, 0.0, 1.0),
        (2 * VOCAB, 1.0, 0.3, 1.0),
        (0, 0.9, 0.0, 0.7),
        (0, 0.999, 0.0, 1.5),
        (400, 0.8, 0.0, 1.0),
        (20, 0.5, 0.0, 1.0),
        (0, 1.0, 0.1, 1.0),
        (50, 0.9, 0.2, 1.3),
    ],
)
def test_only_what_the_rules_keep_is_drawn(
    top_k: int, top_p: float, min_p: float, temperature: float, peak: float
) -> None:
    """Each draw is in the set that sorting in float64 keeps, and the arg max of logits plus noise within it."""
    rows = 40
    logits = some_logits(rows, peak=peak)
    row = row_params(rows, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    drawn = np.asarray(draw(logits, row))

    ids = jnp.broadcast_to(jnp.arange(VOCAB, dtype=jnp.uint32)[None], (rows, VOCAB))
    noise = np.asarray(gumbel((row.seed_low, row.seed_high), row.position, ids))
    for i in range(rows):
        allowed = kept(np.asarray(logits[i]), top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
        score = np.asarray(logits[i]) / np.float32(temperature) + noise[i]
        assert drawn[i] == max(allowed, key=lambda t: score[t])


def test_a_row_draws_the_same_beside_a_row_that_needs_the_whole_vocabulary() -> None:
    logits = some_logits(8)
    narrow = row_params(8, top_p=0.9)
    mixed = narrow._replace(top_p=narrow.top_p.at[3].set(1.0))
    a, b = (np.asarray(draw(logits, row)) for row in (narrow, mixed))

    assert (np.delete(a, 3) == np.delete(b, 3)).all()


def test_an_uncut_row_draws_the_same_alone_and_beside_rows_that_are_cut_or_greedy() -> None:
    logits = some_logits(8)
    open_ = row_params(8)
    mixed = open_._replace(top_k=open_.top_k.at[3].set(7), temperature=open_.temperature.at[5].set(0.0))
    a, b = (np.asarray(draw(logits, row)) for row in (open_, mixed))

    assert (np.delete(a, (3, 5)) == np.delete(b, (3, 5))).all()
    assert b[5] == int(logits[5].argmax())


def test_all_that_tie_with_the_last_one_kept_are_kept() -> None:
    """A thousand equal logits: with more ties than candidates any of them may be drawn, not the first few hundred."""
    drawn = np.asarray(draw(jnp.zeros((400, VOCAB)), row_params(400, top_k=10)))

    assert (drawn >= 2 * sampler.CANDIDATES).mean() > 0.3


def test_draws_follow_the_distribution() -> None:
    """20,000 draws of a five-token distribution; chi-squared with 4 degrees of freedom below its 0.1 % point."""
    rows = 20_000
    p = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    logits = jnp.broadcast_to(jnp.asarray(np.log(p), jnp.float32)[None], (rows, 5))
    drawn = np.asarray(draw(logits, row_params(rows)))
    counts = np.bincount(drawn, minlength=5)

    assert (((counts - rows * p) ** 2) / (rows * p)).sum() < 18.47


def test_temperature_zero_is_greedy() -> None:
    logits = some_logits(6)
    drawn = draw(logits, row_params(6, temperature=0.0, top_p=0.5))

    assert (np.asarray(drawn) == np.asarray(logits).argmax(-1)).all()


def test_penalties_follow_their_definitions() -> None:
    """HF's repetition rule over prompt and output, then OpenAI's frequency and presence over the output."""
    logits = some_logits(1)
    past = no_past(1)
    past = past._replace(generated=past.generated.at[0, 4].set(3), in_prompt=past.in_prompt.at[0, 9].set(True))
    row = row_params(1, temperature=0.0, presence=0.5, frequency=0.25, repetition=1.3)
    expected = np.array(logits)[0]
    for i in (4, 9):
        expected[i] = expected[i] / 1.3 if expected[i] > 0 else expected[i] * 1.3
    expected[4] -= 3 * 0.25 + 0.5

    got = np.asarray(sampler._penalize(logits, past.generated, past.in_prompt, row))[0]

    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_slot_counts_what_was_drawn() -> None:
    past = sampler.count(no_past(3), jnp.asarray([0, 2], jnp.int32), jnp.asarray([5, 7], jnp.int32))
    past = sampler.count(past, jnp.asarray([0], jnp.int32), jnp.asarray([5], jnp.int32))

    assert int(past.generated[0, 5]) == 2
    assert int(past.generated[2, 7]) == 1
    assert int(past.generated.sum()) == 3


def test_a_count_stops_at_the_most_that_is_counted() -> None:
    """One more would be -32,768: a penalty that has grown with every repetition would become a reward."""
    past = no_past(2)
    full = past._replace(generated=past.generated.at[1, 5].set(MOST_COUNTED))
    past = sampler.count(full, jnp.asarray([1, 0], jnp.int32), jnp.asarray([5, 5], jnp.int32))

    assert past.generated[:, 5].tolist() == [1, MOST_COUNTED]


def test_a_bias_holds_up_to_its_position_and_for_its_own_request() -> None:
    """The likeliest token is banned below position 8: row 0 is before that, row 1 behind it, row 2 somebody else."""
    logits = jnp.broadcast_to(some_logits(1), (3, VOCAB))
    best = int(logits[0].argmax())
    past = no_past(1)
    past = past._replace(
        bias_ids=past.bias_ids.at[0, 3].set(best),
        bias=past.bias.at[0, 3].set(-jnp.inf),
        bias_until=past.bias_until.at[0, 3].set(8),
    )
    row = row_params(3, slot=0, temperature=0.0, need=FULL, position=[7, 8, 7], biased=[1, 1, 0])

    drawn = np.asarray(sample(logits, row, past).token)

    assert (drawn == best).tolist() == [False, True, True]


def test_a_row_does_not_care_how_much_its_neighbours_need() -> None:
    """Alone it gets arg max or a plain draw; beside a row with penalties everything is computed for everybody."""
    logits = some_logits(3)
    row = row_params(3, temperature=[0.0, 0.8, 1.0], need=[GREEDY, DRAW, FULL], top_p=0.9, presence=[0, 0, 1])
    together = np.asarray(sample(logits, row, no_past(3)).token)

    for i in range(3):
        alone = sample(logits[i : i + 1], RowParams(*(part[i : i + 1] for part in row)), no_past(3)).token
        assert int(alone[0]) == together[i]


@pytest.mark.parametrize(("need", "logprobs"), [(GREEDY, False), (DRAW, False), (FULL, True)])
def test_log_probabilities_come_where_a_row_needs_everything(need: int, logprobs: bool) -> None:
    drawn = sample(some_logits(2), row_params(2, need=[GREEDY, need]), no_past(2))

    assert (np.asarray(drawn.logprob) < 0).all() == logprobs


def test_bans_make_a_row_need_everything_for_as_long_as_they_hold() -> None:
    row = row_params(2, need=GREEDY, position=7)
    held = sample(some_logits(2), row._replace(full_until=jnp.asarray([8, 0], jnp.uint32)), no_past(2))
    over = sample(some_logits(2), row._replace(full_until=jnp.asarray([7, 0], jnp.uint32)), no_past(2))

    assert np.asarray(held.logprob).all()
    assert not np.asarray(over.logprob).any()


def test_logits_that_are_no_numbers_still_give_an_id() -> None:
    assert 0 <= int(sampler.greedy(jnp.full((1, VOCAB), jnp.nan))[0]) < VOCAB


def test_no_program_sorts_the_vocabulary() -> None:
    """XLA:CPU falls back to a full sort where it does not recognize a top_k: 30 ms a row, and nobody would notice."""
    program = jax.jit(sampler.sample).lower(some_logits(2), row_params(2), no_past(3)).compile().as_text()

    assert "TopK" in program
    assert " sort(" not in program
