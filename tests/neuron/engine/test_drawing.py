"""The GPU's kernels that draw, in Pallas' interpreter: XLA's token in each row, and log-probabilities; and who gets them."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.sharding import make_mesh
from neuron_jax.engine import drawing, sampler, straight_sampler, trials
from neuron_jax.engine.buckets import Draws
from neuron_jax.engine.drawing import some_rows
from neuron_jax.engine.sampler import MAX_ALTERNATIVES
from neuron_jax.engine.straight_sampler import Drawing
from neuron_jax.engine.trials import Trial, Verdict
from tests.fakes import quick

row_sampler = pytest.importorskip(
    "neuron_jax.engine.row_sampler", reason="this JAX has no Triton", exc_type=ImportError
)

KERNELS = Drawing(partial(row_sampler.draw, interpret=True), partial(row_sampler.with_logprobs, interpret=True))
VOCABS = [7, 3000]
ours, theirs = quick.jit(KERNELS.draw), quick.jit(straight_sampler.drawn_by_cuts)
told, known = quick.jit(KERNELS.with_logprobs), quick.jit(straight_sampler.with_logprobs)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 40), marks=pytest.mark.slow)])
@pytest.mark.parametrize("vocab", VOCABS)
def test_each_row_draws_what_xla_draws(vocab: int, seeds: range) -> None:
    """Hundreds of rows of each vocabulary, or thousands, with ties, bans, and every cut at its ends."""
    for seed in seeds:
        logits, row = some_rows(vocab, seed=seed)

        assert (np.asarray(ours(logits, row)) == np.asarray(theirs(logits, row))).all()


@pytest.mark.parametrize("kind", ["equal", "far apart", "but one banned"])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 1}, {"top_k": 3000}, {"top_p": 0.5}, {"min_p": 1.0}, {"top_p": 0.0}])
def test_rows_at_the_ends(cuts: dict[str, float], kind: str) -> None:
    """Where all tokens tie every one is kept, by any cut; and they are no few. Or there is but one."""
    shape = (drawing.ROWS, 3000)
    logits = {
        "equal": jnp.zeros(shape),
        "far apart": jnp.broadcast_to(-30.0 * jnp.arange(shape[1], dtype=jnp.float32)[None], shape),
        "but one banned": jnp.full(shape, -jnp.inf).at[:, 77].set(0),
    }[kind]
    _, row = some_rows(shape[1], seed=1)
    ones = jnp.ones(drawing.ROWS, jnp.float32)
    row = row._replace(temperature=ones, top_k=jnp.zeros_like(row.top_k), top_p=ones, min_p=0 * ones)
    row = row._replace(**{name: jnp.full_like(getattr(row, name), value) for name, value in cuts.items()})
    drawn = np.asarray(ours(logits, row))

    assert (drawn == np.asarray(theirs(logits, row))).all()
    assert len(set(drawn)) > drawing.ROWS // 2 if kind == "equal" else len(set(drawn)) == 1


@pytest.mark.parametrize("vocab", VOCABS)
def test_log_probabilities_are_those_of_xla(vocab: int) -> None:
    """Of the drawn token and of the likeliest, of equals the lowest id first; none of those that a tiny vocabulary lacks."""
    logits, row = some_rows(vocab, seed=3)
    logits = jnp.where(jnp.isinf(logits), -50.0, logits)  # raw logits are finite
    token = theirs(logits, row)
    got, wanted = told(logits, token), known(logits, token)

    assert (np.asarray(got.top_ids) == np.asarray(wanted.top_ids)).all()
    np.testing.assert_allclose(got.logprob, wanted.logprob, atol=1e-5)
    np.testing.assert_allclose(got.top_logprobs, wanted.top_logprobs, atol=1e-5)
    assert not np.asarray(got.top_logprobs)[:, min(vocab, MAX_ALTERNATIVES) :].any()


def test_equal_tokens_are_told_by_their_ids() -> None:
    """Though they are more than are copied side by side."""
    ids = np.asarray(told(jnp.zeros((2, 3000)), jnp.zeros(2, jnp.int32)).top_ids)

    assert (ids == np.arange(MAX_ALTERNATIVES)).all()


def test_a_row_that_wants_everything_is_drawn_by_them() -> None:
    """Penalties and masks are what XLA makes of them, before."""
    vocab = 1000
    logits, row = some_rows(vocab, seed=5)
    logits = jnp.maximum(logits, -50.0)
    rows = drawing.ROWS
    ones = jnp.ones(rows, jnp.float32)
    row = row._replace(repetition=1.3 * ones, frequency=0.2 * ones, masked=row.slot % 2, need=row.need * 2)
    past = sampler.Past(
        generated=jnp.zeros((rows, vocab), jnp.int16).at[:, ::5].set(2),
        in_prompt=jnp.zeros((rows, vocab), jnp.bool_),
        bias_ids=jnp.zeros((rows, sampler.MAX_BIAS), jnp.int32),
        bias=jnp.zeros((rows, sampler.MAX_BIAS), jnp.float32),
        bias_until=jnp.zeros((rows, sampler.MAX_BIAS), jnp.uint32),
    )
    masks = jnp.full((rows, -(-vocab // 32)), 0x0F0F0F0F, jnp.int32)
    by, by_xla = (partial(straight_sampler.sample, Draws.FULL, drawing=one) for one in (KERNELS, None))
    got, wanted = (quick.jit(way)(logits, row, past, masks) for way in (by, by_xla))

    assert (np.asarray(got.token) == np.asarray(wanted.token)).all()
    assert (np.asarray(got.token)[1::2] % 8 < 4).all()
    np.testing.assert_allclose(got.logprob, wanted.logprob, atol=1e-5)


def test_several_devices_draw_what_one_does() -> None:
    """All of them, from logits that each has whole."""
    logits, row = some_rows(300, seed=3)
    spread = drawing.over(make_mesh(jax.devices("cpu")[:2]), KERNELS)
    drawn, alone = (quick.jit(by.draw)(logits, row) for by in (spread, KERNELS))
    found = [quick.jit(by.with_logprobs)(logits, alone) for by in (spread, KERNELS)]

    assert (np.asarray(drawn) == np.asarray(alone)).all()
    np.testing.assert_array_equal(found[0].top_logprobs, found[1].top_logprobs)


def test_kernels_are_tried_before_they_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a CPU, and not where they draw other tokens."""
    gpu = SimpleNamespace(platform="gpu", compute_capability="8.0")

    def hotter(logits: jax.Array, row: Any) -> jax.Array:
        return straight_sampler.drawn_by_cuts(logits, row._replace(temperature=row.temperature * 2))

    right = Drawing(straight_sampler.drawn_by_cuts, straight_sampler.with_logprobs)
    said = drawing.problem(evolve(right, draw=hotter), 1000)

    assert drawing.choose(SimpleNamespace(platform="cpu"), 1000, tried=True) is None
    assert drawing.choose(gpu, 1000, tried=False) is not None
    assert drawing.problem(right, 1000) is None
    assert "of the tokens drawn" in str(said)
    asked: list[Trial] = []
    for why in (None, "differs"):
        monkeypatch.setattr(trials, "tried", lambda those, _, why=why: [*map(asked.append, those), Verdict(why)][-1:])
        assert (drawing.choose(gpu, 1000, tried=True) is None) == (why is not None)
    assert asked == [Trial("drawing", {"vocab": 1000})] * 2
