"""How predictions are compared: nothing against itself, what the formulas say, and every token of a text once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.registry import build
from neuron_jax.quality.measure import WINDOW, Compared, Quality, compare, predictions, windows
from tests.fakes.plain_pass import full_logits
from tests.fakes.tiny_llama import CONFIG
from tests.fakes.weight_files import random_tensors

IDS = [int(id_) for id_ in np.random.default_rng(0).integers(0, CONFIG["vocab_size"], 2 * WINDOW + 40)]


def loaded(quant: str) -> tuple[Any, Any]:
    model = build(CONFIG, quant=quant, dtype=jnp.float32)
    return model, jax.tree.map(jnp.asarray, mapping.load(model.rules, random_tensors(model)))


def quality(quant: str) -> Quality:
    cut = windows(IDS, None)
    exact = list(predictions(*loaded("none"), cut))
    found = predictions(*loaded(quant), cut)
    return Quality.of([compare(*row) for row in zip(exact, found, cut, strict=True)])


def test_a_format_against_itself_differs_in_nothing() -> None:
    """Float32 beside float32 diverges by 0 exactly, and all first choices are the same."""
    found = quality("none")

    assert (found.kl_mean, found.kl_p99, found.same_first) == (0, 0, 1)
    assert found.tokens == len(IDS) - 3  # the last of each window predicts nothing known


def test_rounded_weights_differ_a_little() -> None:
    """int8 diverges from float32, by less than a thousandth, and predicts about as well."""
    exact, found = quality("none"), quality("int8")

    assert 0 < found.kl_mean < found.kl_p99 < 0.01
    assert found.kl_mean < 0.001
    assert found.perplexity == pytest.approx(exact.perplexity, rel=0.01)


def test_predictions_are_those_of_one_plain_pass() -> None:
    """A window's logits are the model's own, the padding of a short one having no part in them."""
    model, params = loaded("none")
    cut = windows(IDS, None)
    found = list(predictions(model, params, cut))

    assert [len(row) for row in found] == [WINDOW - 1, WINDOW - 1, 39]
    np.testing.assert_allclose(found[2], full_logits(model, params, IDS[2 * WINDOW :])[:39], atol=1e-5)


def test_figures_follow_their_formulas() -> None:
    """Two tokens by hand: a fair coin that is taken for a three to one, and one that is not."""
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]])
    exact = np.concatenate([biased, fair]).astype(np.float32)
    found = np.concatenate([fair, fair]).astype(np.float32) + 7  # logits mean the same whatever is added to all
    row = compare(exact, found, np.array([0, 1, 0], np.int32))
    kl = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)

    np.testing.assert_allclose(row.loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(row.kl, [kl, 0], atol=1e-6)
    assert Quality.of([row, row]).perplexity == pytest.approx(2)


def test_windows_share_no_token_and_lose_none() -> None:
    """Without a begin token the windows are the text; with one, each begins with it and the rest is the text."""
    plain, marked = windows(IDS, None), windows([299, *IDS], 299)

    assert [int(id_) for window in plain for id_ in window] == IDS
    assert [int(id_) for window in marked for id_ in window[1:]] == IDS
    assert {int(window[0]) for window in marked} == {299}
    assert max(map(len, plain)) == max(map(len, marked)) == WINDOW


def test_a_last_token_alone_is_left_out() -> None:
    """It would predict nothing."""
    assert [len(window) for window in windows(IDS[: WINDOW + 1], None)] == [WINDOW]


def test_quality_is_over_tokens_not_windows() -> None:
    """A short window counts as much as it has tokens."""
    one = Compared(np.zeros(3), np.zeros(3), np.ones(3, bool))
    other = Compared(np.full(1, 4.0), np.full(1, 4.0), np.zeros(1, bool))
    found = Quality.of([one, other])

    assert (found.kl_mean, found.same_first, found.tokens) == (1, 0.75, 4)
    assert found.perplexity == pytest.approx(np.e)
