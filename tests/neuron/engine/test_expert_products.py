"""Which kernels compute experts. As for products; the trial is held here to kernels that are right, and to one that is not."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from models.matrices import Kind, Shape
from models.mixtures import ExpertKernels, ExpertMatrices, MixtureShape
from models.routing import route
from neuron_jax.engine import expert_products, products
from neuron_jax.engine.products import WrongError
from neuron_jax.engine.trials import Verdict

experts_triton = pytest.importorskip("models.experts_triton", reason="this JAX has no Triton", exc_type=ImportError)

GPU = SimpleNamespace(platform="gpu", compute_capability="8.6", device_kind="a card")


def shape_of(kind: Kind, inner: int = 32) -> MixtureShape:
    return MixtureShape(Shape(kind, 2 * inner, 64, gated=True), Shape(kind, 64, inner), 5, 2)


@pytest.mark.parametrize("kind", ["float", "int8", "fp8", "int4", "mxfp4"])
def test_a_trial_finds_what_is_wrong(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ExpertKernels that do what XLA does pass, with experts of every format; some that forget the shares do not."""
    monkeypatch.setattr(products, "CALLS", 1)
    right = partial(experts_triton.through, interpret=True)

    def shareless(x: Any, chosen: Any, shares: Any, mixture: ExpertMatrices, residual: Any = None) -> jax.Array:
        made: jax.Array = right(x, chosen, jnp.ones_like(shares), mixture, residual)
        return made

    ours, theirs = expert_products.measured(ExpertKernels(route, right), jnp.float32, shape_of(kind), 2)

    assert min(ours, theirs) > 0
    with pytest.raises(WrongError, match="differs by"):
        expert_products.measured(ExpertKernels(route, shareless), jnp.float32, shape_of(kind), 2)


def test_kernels_serve_as_many_tokens_as_they_were_found_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those shapes that they were made for."""
    able, other = shape_of("int8"), shape_of("int8", 24)
    monkeypatch.setattr("neuron_jax.engine.trials.tried", lambda asked, device: [Verdict(rows=16)] * len(asked))
    found = expert_products.choose(GPU, jnp.bfloat16, [able, other])
    untried = expert_products.choose(GPU, jnp.bfloat16, [able, other], tried=False)

    assert found is not None
    assert untried is not None
    assert [found(able, tokens) is not None for tokens in (1, 16, 17)] == [True, True, False]
    assert [untried(shape, 64) is not None for shape in (able, other)] == [True, False]
    assert expert_products.choose(SimpleNamespace(platform="cpu"), jnp.bfloat16, [able]) is None


def test_another_process_is_asked_by_values_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("neuron_jax.engine.trials.tried", lambda trials, device: asked.extend(trials) or [Verdict()])
    monkeypatch.setattr(expert_products, "measured", lambda kernels, dtype, shape, tokens: (tokens, 16))
    expert_products.choose(GPU, jnp.bfloat16, [shape_of("fp8")])

    assert expert_products.verdict(asked[0].asked, GPU) == Verdict(rows=16)
