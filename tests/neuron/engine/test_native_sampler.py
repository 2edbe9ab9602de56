"""The native sampler against XLA's, token by token, and its promise: bits that do not depend on the rows beside."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.native import library
from models.sharding import make_mesh
from neuron_jax.engine import native_sampler, sampler
from neuron_jax.engine.noise import gumbel
from neuron_jax.engine.sampler import (
    DRAW,
    FULL,
    GREEDY,
    MAX_BIAS,
    MOST_COUNTED,
    NOTHING,
    Past,
    RowParams,
    SamplerOutput,
)
from tests.neuron.engine.test_sampler import row_params

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")

VOCAB, ROWS, SLOTS = 1003, 64, 65
NEAR = 1e-5
"""Scores that lie closer than this may change places: exp and log of XLA and of the kernels differ in the last bits."""

xla, native = jax.jit(sampler.sample), jax.jit(native_sampler.sample)


def some_past(rng: np.random.Generator, vocab: int = VOCAB) -> Past:
    bias = np.where(rng.random((SLOTS, MAX_BIAS)) < 0.1, -np.inf, rng.standard_normal((SLOTS, MAX_BIAS)) * 3)
    ids = np.stack([rng.permutation(max(vocab, MAX_BIAS))[:MAX_BIAS] % vocab for _ in range(SLOTS)])
    return Past(
        generated=jnp.asarray(rng.poisson(0.3, (SLOTS, vocab)), jnp.int16),
        in_prompt=jnp.asarray(rng.random((SLOTS, vocab)) < 0.2),
        bias_ids=jnp.asarray(ids, jnp.int32),
        bias=jnp.asarray(bias, jnp.float32),
        bias_until=jnp.asarray(rng.integers(0, 60, (SLOTS, MAX_BIAS)), jnp.uint32),
    )


def mixed_rows(rng: np.random.Generator, rows: int = ROWS) -> RowParams:
    """Rows of every kind side by side; penalties and biases for those that need everything."""

    def either(*values: float) -> np.ndarray:
        return rng.choice(np.array(values), rows)

    need = rng.choice([GREEDY, DRAW, FULL], rows, p=[0.2, 0.4, 0.4])
    full = need == FULL
    hot = either(0.3, 0.7, 1.0, 1.7) * (need != GREEDY) * (rng.random(rows) < 0.9)
    return row_params(
        rows,
        slot=rng.permutation(SLOTS)[:rows],
        position=rng.integers(1, 50, rows),
        seed_low=rng.integers(0, 2**32, rows),
        seed_high=rng.integers(0, 2**32, rows),
        temperature=hot,
        top_k=either(0, 0, 0, 1, 5, 40, 300, 5000),
        top_p=either(1, 1, 0.3, 0.9, 0.95, 0.999),
        min_p=either(0, 0, 0, 0.02, 0.3),
        presence=full * either(0, 0.5, -1),
        frequency=full * either(0, 0.3),
        repetition=np.where(full, either(1, 1.2, 0.8), 1),
        biased=full * (rng.random(rows) < 0.5),
        need=need,
        full_until=either(0, 0, 20),
    )


def assert_same_tokens(
    found: SamplerOutput, expected: SamplerOutput, logits: jax.Array, row: RowParams, past: Past
) -> int:
    """Where tokens differ their scores are too close to tell apart. Returns how many do."""
    differs = np.nonzero(np.asarray(found.token) != np.asarray(expected.token))[0]
    if not len(differs):
        return 0
    ids = jnp.broadcast_to(jnp.arange(logits.shape[1], dtype=jnp.uint32)[None], logits.shape)
    noise = np.asarray(gumbel((row.seed_low, row.seed_high), row.position, ids))
    adjusted = np.asarray(sampler.adjust(logits, row, past))
    for i in differs:
        score = adjusted[i] / np.float32(row.temperature[i]) + noise[i]
        a, b = score[found.token[i]], score[expected.token[i]]
        assert abs(a - b) < NEAR, f"row {i}: {jax.tree.map(lambda part: part[i], row)}"  # noqa: B023
    return len(differs)


@pytest.mark.parametrize("peak", [0.3, 1.0, 4.0])
def test_the_tokens_are_xlas(peak: float) -> None:
    """640 rows of every mix of parameters, flat and peaked."""
    different = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        logits = jnp.asarray(rng.standard_normal((ROWS, VOCAB)) * peak, jnp.float32)
        row, past = mixed_rows(rng), some_past(rng)
        different += assert_same_tokens(native(logits, row, past), xla(logits, row, past), logits, row, past)
    assert different <= 1


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.9999])
def test_a_whole_vocabulary_gives_xlas_tokens(top_p: float) -> None:
    """49,152 tokens, nuclei of a few and of most of them."""
    rng = np.random.default_rng(3)
    logits = jnp.asarray(rng.standard_normal((8, 49152)) * np.geomspace(0.5, 6, 8)[:, None], jnp.float32)
    row, past = row_params(8, top_p=top_p, position=np.arange(8)), some_past(rng, 49152)
    assert_same_tokens(native(logits, row, past), xla(logits, row, past), logits, row, past)


def test_ties_are_kept_together_and_the_lowest_id_wins() -> None:
    """Logits of seven values only: cuts fall among equals everywhere."""
    rng = np.random.default_rng(5)
    logits = jnp.asarray(rng.integers(0, 7, (ROWS, VOCAB)), jnp.float32)
    past = some_past(rng)
    greedy = row_params(ROWS, temperature=0.0)
    row = row_params(ROWS, top_k=rng.integers(1, 200, ROWS), position=rng.integers(0, 99, ROWS))

    assert (np.asarray(native(logits, greedy, past).token) == np.asarray(logits).argmax(-1)).all()
    assert (np.asarray(native(logits, row, past).token) == np.asarray(xla(logits, row, past).token)).all()


def test_log_probabilities_are_those_of_xla_and_the_likeliest_come_in_order() -> None:
    rng = np.random.default_rng(6)
    logits = jnp.asarray(rng.integers(-40, 40, (ROWS, VOCAB)) / 8, jnp.float32)
    row, past = row_params(ROWS, need=FULL), some_past(rng)
    found, expected = native(logits, row, past), xla(logits, row, past)

    np.testing.assert_allclose(found.logprob, expected.logprob, atol=1e-5)
    np.testing.assert_array_equal(found.top_ids, expected.top_ids)
    np.testing.assert_allclose(found.top_logprobs, expected.top_logprobs, atol=1e-5)


def test_a_rows_bits_do_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(7)
    logits = jnp.asarray(rng.standard_normal((ROWS, VOCAB)) * 2, jnp.float32)
    row, past = mixed_rows(rng), some_past(rng)
    together = native(logits, row, past)
    for rows in (1, 3, 16):
        part = native(logits[:rows], RowParams(*(column[:rows] for column in row)), past)
        for one, all_ in zip(part, together, strict=True):
            assert np.array_equal(one, all_[:rows])


@pytest.mark.parametrize("draw", [xla, native])
def test_a_token_that_was_said_without_end_is_penalized_for_good(draw: Callable[..., SamplerOutput]) -> None:
    """40,000 times are more than an int16 counts. The likeliest token by far has lost to all others long before."""
    past = some_past(np.random.default_rng(4))
    many = past.generated.at[:].set(0).at[3, 7].set(MOST_COUNTED - 2)
    past = past._replace(generated=many, in_prompt=past.in_prompt.at[:].set(False))
    logits = jnp.zeros((1, VOCAB), jnp.float32).at[0, 7].set(1000.0)
    row = row_params(1, slot=3, temperature=0.0, frequency=0.1, need=FULL)
    for _ in range(4):
        assert draw(logits, row, past).token.tolist() == [0]
        past = sampler.count(past, jnp.asarray([3], jnp.int32), jnp.asarray([7], jnp.int32))


def test_a_row_that_wants_nothing_gets_nothing() -> None:
    rng = np.random.default_rng(8)
    row = row_params(2, need=[NOTHING, FULL], slot=0)
    found = native(jnp.full((2, VOCAB), jnp.nan).at[1].set(1.0), row, some_past(rng))

    assert [int(found.token[0]), float(found.logprob[0])] == [0, 0.0]
    assert float(found.logprob[1]) == pytest.approx(-np.log(VOCAB), rel=1e-5)


@pytest.mark.parametrize("logit", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vocab", [5, VOCAB])
def test_logits_that_are_no_numbers_still_give_an_id(logit: float, vocab: int) -> None:
    rng = np.random.default_rng(9)
    row, logits = mixed_rows(rng), jnp.full((ROWS, vocab), logit, jnp.float32)
    found = np.asarray(native(logits, row, some_past(rng, vocab)).token)

    assert ((found >= 0) & (found < vocab)).all()


def test_a_slot_that_does_not_exist_is_an_error_not_a_crash() -> None:
    row = row_params(1, slot=SLOTS)
    with pytest.raises(Exception, match="no such slot"):
        jax.block_until_ready(native(jnp.zeros((1, VOCAB)), row, some_past(np.random.default_rng(0))))


def test_it_serves_one_device() -> None:
    assert native_sampler.refuses(make_mesh(jax.devices("cpu")[:1])) is None
    assert native_sampler.refuses(make_mesh(jax.devices("cpu")[:2])) == "serves one CPU device"


def test_masked_rows_draw_what_they_may_as_xlas_do() -> None:
    """Of every kind of row some are masked; the others draw as if there were no masks."""
    rng = np.random.default_rng(11)
    logits = jnp.asarray(rng.standard_normal((ROWS, VOCAB)), jnp.float32)
    past, row = some_past(rng), mixed_rows(rng)
    may = rng.random((ROWS, -(-VOCAB // 32) * 32)) < 0.02
    may[:, 7] = True
    masks = jnp.asarray(np.packbits(may, axis=1, bitorder="little").view(np.int32))
    masked = np.arange(ROWS) % 2
    bound = row._replace(masked=jnp.asarray(masked, jnp.int32))
    found, expected, free = (
        native(logits, bound, past, masks),
        xla(logits, bound, past, masks),
        native(logits, row, past),
    )
    tokens = np.asarray(found.token)

    assert may[np.arange(ROWS), tokens][masked > 0].all()
    assert (tokens == np.asarray(expected.token)).mean() > 0.98
    np.testing.assert_array_equal(tokens[masked == 0], np.asarray(free.token)[masked == 0])
    np.testing.assert_array_equal(np.asarray(found.top_ids), np.asarray(free.top_ids))
