"""ExpertKernels for experts and few tokens, in Pallas' interpreter, against what XLA makes of the same layers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.dense.record import Activation, Experts
from models.experts_xla import ExpertsXla
from models.linears import Linears, linear_store
from models.linears_xla import store_mxfp4
from models.mapping import store_each
from models.matrices import Shape
from models.mixtures import ExpertKernels, MixtureShape, computing
from models.nn import RMSNorm
from models.routing import route
from models.storage import MXFP4
from tests.fakes.weight_files import random_blocks
from tests.models.test_linears_xla import with_leaves

experts_triton = pytest.importorskip("models.experts_triton", reason="this JAX has no Triton", exc_type=ImportError)
expert_groups = pytest.importorskip("models.expert_groups", reason="this JAX has no Triton", exc_type=ImportError)
routing_triton = pytest.importorskip("models.routing_triton", reason="this JAX has no Triton", exc_type=ImportError)

WIDTH, INNER = 128, 96
SIX = Experts(count=6, active=3, width=INNER)
OSS = evolve(SIX, bias=True, router_bias=True)
rng = np.random.default_rng(5)


def layer(quant: str, experts: Experts, activation: Activation, dtype: Any = jnp.float32) -> ExpertsXla:
    """With random weights."""
    coded = ("experts.gate_up", "experts.down") if quant == "stored" else ()
    made = Linears(quant, dtype, coded=coded).experts("experts", experts, activation, WIDTH, INNER)
    assert isinstance(made, ExpertsXla)
    count, halves = experts.count, activation.halves
    for maps, shape, inputs in (
        (made.gate_up, (count, 1, halves, INNER, WIDTH), 1),
        (made.down, (count, WIDTH, 1, INNER), 2),
    ):
        whole = rng.standard_normal(shape).astype(np.float32) / 8
        if coded:
            blocks = random_blocks(MXFP4, whole.size // shape[-1], shape[-1])
            leaves = store_mxfp4(evolve(blocks, scale=blocks.scale / 64), shape, inputs)
        else:
            leaves = dict(store_each(linear_store(inputs, quant))(whole))
        if experts.bias:
            leaves["bias"] = rng.standard_normal(shape[: len(shape) - inputs]).astype(np.float32)
        said = {name: getattr(maps, name).get_value().dtype for name in leaves}
        with_leaves(maps, {name: np.asarray(leaf).astype(said[name]) for name, leaf in leaves.items()})
    return made


def both(
    made: ExpertsXla, x: jax.Array, logits: jax.Array, residual: jax.Array | None, **given: Any
) -> list[np.ndarray]:
    """What XLA makes of a step, and what the kernels do."""
    asked: list[int] = []

    def choose(shape: MixtureShape, tokens: int) -> ExpertKernels:
        assert experts_triton.refuses(shape) is None
        asked.append(tokens)
        return ExpertKernels(
            partial(routing_triton.route, interpret=True), partial(experts_triton.through, interpret=True)
        )

    plain = made(x, logits, residual, **given)
    with computing(choose):
        ours = made(x, logits, residual, **given)
    assert asked == [x.shape[0]]
    return [np.asarray(plain, np.float32), np.asarray(ours, np.float32)]


SILU, GELU, CLAMPED = Activation(), Activation("gelu_tanh"), Activation("swiglu_oai", 7.0)
SIGMOID = evolve(SIX, scoring="sigmoid", scale=2.5)


@pytest.mark.parametrize(
    ("quant", "experts", "activation", "tokens"),
    [
        ("none", SIX, SILU, 1),
        ("none", OSS, CLAMPED, 5),
        ("none", OSS, CLAMPED, 70),
        ("int8", OSS, GELU, 1),
        ("int8", SIX, GELU, 17),
        ("int4", OSS, CLAMPED, 1),
        ("int4", SIX, SILU, 17),
        ("int4", SIX, SILU, 70),
        ("stored", OSS, CLAMPED, 1),
        ("stored", OSS, CLAMPED, 17),
        ("stored", OSS, CLAMPED, 70),
        ("fp8", SIGMOID, Activation("relu2"), 1),
        ("fp8", SIGMOID, Activation("relu2"), 5),
    ],
)
def test_experts_are_those_of_xla(quant: str, experts: Experts, activation: Activation, tokens: int) -> None:
    """Of a token alone, and of several, of which the last has the first one's: experts of none, of one and of many tokens."""
    made = layer(quant, experts, activation)
    x = jnp.asarray(rng.standard_normal((tokens, WIDTH)), jnp.float32)
    logits = jnp.asarray(rng.standard_normal((tokens, experts.count)), jnp.float32)
    logits = logits.at[-1].set(logits[0]).at[:, 4].set(-9)
    residual = jnp.asarray(rng.standard_normal((tokens, WIDTH)), jnp.float32)
    norm = with_leaves(RMSNorm(WIDTH, 1e-5), {"weight": rng.random(WIDTH).astype(np.float32)})
    true, ours = both(made, x, logits, residual, norm=norm)
    # Only the kernels leave activations as they are where weights are int8.
    off = 3e-2 if quant in ("int8", "int4") else 1e-5

    assert np.abs(ours - true).max() <= np.abs(true).max() * off


@pytest.mark.parametrize(("tokens", "count"), [(7, 1), (7, 6), (90, 6)])
def test_all_tokens_may_choose_one_expert(tokens: int, count: int) -> None:
    """Of which there is one alone, or six; with nothing before and behind."""
    x = jnp.asarray(rng.standard_normal((tokens, WIDTH)), jnp.bfloat16)
    experts = Experts(count=count, active=1, width=INNER, scoring="sigmoid", renormalised=False)
    logits = jnp.zeros((tokens, count), jnp.float32).at[:, 0].set(1)
    true, ours = both(layer("none", experts, SILU, jnp.bfloat16), x, logits, None)

    assert np.abs(ours - true).max() <= np.abs(true).max() * 1e-2


@pytest.mark.parametrize(("pairs", "count"), [(1, 3), (40, 7), (1500, 5)])
def test_pairs_are_sorted_by_their_experts(pairs: int, count: int) -> None:
    """Those of an expert in their order; an expert may have none."""
    chosen = rng.integers(0, count - 1, pairs).astype(np.int32)
    order, counts = expert_groups.sort(jnp.asarray(chosen), count, interpret=True)

    assert (order == np.argsort(chosen, kind="stable")).all()
    assert (counts == np.bincount(chosen, minlength=count)).all()


@pytest.mark.parametrize("quant", ["none", "int4", "stored"])
def test_a_token_does_not_depend_on_those_beside_it(quant: str) -> None:
    made = layer(quant, SIX, Activation())
    x = jnp.asarray(rng.standard_normal((5, WIDTH)), jnp.float32)
    logits = jnp.asarray(rng.standard_normal((5, 6)), jnp.float32)
    whole, part = (both(made, x[:n], logits[:n], x[:n])[1] for n in (5, 2))
    other = both(made, x.at[2:].set(7), logits.at[2:].set(0), x)[1]

    assert (whole[:2] == part).all()
    assert (whole[:2] == other[:2]).all()


@pytest.mark.parametrize(
    "experts",
    [
        Experts(count=7, active=3, width=1, renormalised=False),
        Experts(count=32, active=5, width=1, scoring="sigmoid", scale=2.5, correction=True, groups=8, kept_groups=4),
        Experts(count=1, active=1, width=1, scoring="sigmoid", renormalised=False),
    ],
)
def test_tokens_are_routed_as_by_xla(experts: Experts) -> None:
    logits, correction = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((9, experts.count), experts.count)
    )
    given = (correction if experts.correction else None, None if experts.correction else correction)
    for got, true in zip(
        routing_triton.route(experts, logits, *given, interpret=True), route(experts, logits, *given), strict=True
    ):
        np.testing.assert_allclose(got, true, rtol=1e-5)


def test_there_is_an_expert_even_where_there_are_no_numbers() -> None:
    """A number out of range would be an address out of range."""
    chosen, _ = routing_triton.route(SIX, jnp.full((2, 6), jnp.nan), interpret=True)

    assert ((chosen >= 0) & (chosen < 6)).all()


@pytest.mark.parametrize(("width", "inner", "refused"), [(128, 96, False), (120, 96, True), (128, 80, True)])
def test_sizes_that_they_were_not_made_for_are_refused(width: int, inner: int, refused: bool) -> None:
    shape = MixtureShape(Shape("float", 2 * inner, width, gated=True), Shape("float", width, inner), 6, 3)

    assert (experts_triton.refuses(shape) is not None) == refused
