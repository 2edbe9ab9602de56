"""The GPU's kernels against dense float64 attention and what XLA computes, and which of them an 8B model gets."""

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models import experts_triton, few_rows, routing_triton
from models.dense.convolution import ConvolutionRule
from models.dense.delta import DeltaRule
from models.dense.mamba import MambaRule, Together
from models.dense.record import GatedDelta, Mamba2, ShortConvolution, recurrent_layer
from models.matrices import Shape
from models.mixtures import ExpertKernels, MixtureShape
from models.native.ops import Norm
from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine import drawing, expert_products, products, recurring, row_sampler, straight_sampler
from neuron_jax.engine.attention import pallas
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.reference import BLOCK
from neuron_jax.engine.attention.trial import Case
from tests.fakes.paged_case import PagedCase, paged_case

pytestmark = pytest.mark.gpu

PAGE = 16
LENGTHS = [1, PAGE - 1, PAGE, PAGE + 1, 63, 64, 65, BLOCK, BLOCK + 1, 256, 257, 512, 2000, 0]
MIXED = [1, 15, 1, 17, 1, 24, 1, 1, 40, 1, 1, 200, 1, 1]
HEADS = [(2, 3, 64), (1, 8, 80), (2, 1, 96), (1, 20, 128), (8, 4, 128), (2, 8, 256), (1, 128, 128)]
EXTRAS: list[dict[str, Any]] = [{}, {"window": 100}, {"soft_cap": 1.5, "sinks": True, "window": 1000}]


def attended(case: PagedCase, gpu: Any, pad: int = 3) -> np.ndarray:
    served = Case(make_mesh([gpu]), jnp.bfloat16, case.kv, 0, case.cache[0].shape[1], (case.layer,))
    sinks = None if case.sinks is None else jnp.asarray(case.sinks)
    rows = case.ragged(pad)

    def step(cache: Any, *tokens: jax.Array) -> jax.Array:
        return pallas.make(served, rows)(*tokens, cache, sinks)[0]

    flat = [jnp.asarray(case.flat(part, pad)).astype(jnp.bfloat16) for part in (case.q, case.k, case.v)]
    mixed = np.asarray(jax.jit(step)(tuple(map(jnp.asarray, case.cache)), *flat), np.float32)
    assert not mixed[int(case.count.sum()) :].any(), "padding gets zeros"
    return mixed[: int(case.count.sum())]


@pytest.mark.parametrize("kv", ["bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("chunk", [1, MIXED])
def test_the_kernel_is_dense_attention(
    gpu: Any, chunk: Any, heads: tuple[int, int, int], extra: dict[str, Any], kv: str
) -> None:
    case = paged_case(LENGTHS, chunk=chunk, heads=heads, kv=kv, most=2048, **extra)
    wanted = case.stored[case.real]

    assert np.abs(attended(case, gpu) - wanted).max() < 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize("kv", ["bfloat16", "int8", "fp8"])
def test_an_8b_model_gets_the_kernel_that_was_made_for_it(gpu: Any, kv: str) -> None:
    """Which another process has tried."""
    choice = choose(Case(make_mesh([gpu]), jnp.bfloat16, KVFormat(kv), 4096, PAGE, (PagedLayer(8, 4, 128, 128),)))

    assert choice.name == "pallas", choice.reason


@pytest.mark.parametrize("rows", [1, 5, 16, 64])
@pytest.mark.parametrize("kind", ["float", "table", "int8", "fp8", "int4"])
def test_products_of_few_rows_are_those_of_xla(gpu: Any, kind: Any, rows: int) -> None:
    """Of an 8B model's shapes, gated and not. Raises where they differ."""
    for shape in (Shape(kind, 6144, 4096), Shape(kind, 28672, 4096, gated=True), Shape(kind, 4096, 14336)):
        ours, theirs = products.measured(few_rows.product, jnp.bfloat16, shape, rows)

        print(f"{shape}, {rows} rows: {1e6 * ours:.0f} us, XLA {1e6 * theirs:.0f} us")


FLOATS = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
STORED = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)


def some_recurrence(name: str) -> tuple[Any, recurring.Seen]:
    """Of Qwen 3.5 9B, Granite 4 and LFM2."""
    if name == "delta":
        layer = recurrent_layer(GatedDelta(16, 32, 128, 128, 4), 4096, 1)
        taps, state = (leaf.shape for leaf in layer.state)
        heads = FLOATS(state[:2])
        rule: Any = DeltaRule(FLOATS((4, *taps[1:])), heads, heads, Norm(FLOATS(state[3:]), 1e-6))
        token: Any = (STORED(taps[1:]), FLOATS((state[0], 2, state[1])), STORED((*state[:2], state[3])))
    elif name == "mamba":
        kind = Mamba2(48, 1, 64, 128, 4, 1e-5)
        layer = recurrent_layer(kind, 1536, 1)
        taps, state = (leaf.shape for leaf in layer.state)
        given = (*state[:2], state[3])
        norm, together = Norm(FLOATS(given), 1e-5), Together.plan(kind, 1)
        rule = MambaRule(FLOATS((4, *taps[1:])), FLOATS(taps[1:]), (FLOATS(state[:2]),) * 3, norm, together)
        token = (STORED(taps[1:]), FLOATS(state[:2]), STORED(given))
    else:
        layer = recurrent_layer(ShortConvolution(3), 2048, 1)
        ((_, *channels),) = (leaf.shape for leaf in layer.state)
        rule = ConvolutionRule(FLOATS((3, *channels)), None)
        token = STORED((channels[0], 3, channels[1]))
    return layer, recurring.Seen(rule, token, 0)


@pytest.mark.parametrize("name", ["delta", "mamba", "convolution"])
def test_states_go_on_as_those_of_xla(name: str) -> None:
    assert recurring.problem(recurring.by_kernel, *some_recurrence(name)) is None


@pytest.mark.parametrize("vocab", [49152, 128256, 248320])
def test_tokens_are_drawn_as_by_xla(vocab: int) -> None:
    kernels = drawing.Drawing(row_sampler.draw, row_sampler.with_logprobs)
    logits, row = drawing.some_rows(vocab, seed=1)
    for rows in (1, drawing.ROWS):
        given = jax.tree.map(lambda leaf, rows=rows: leaf[:rows], (logits, row))
        ours, theirs = (fastest(way, *given) for way in (kernels.draw, straight_sampler.drawn_by_cuts))
        print(f"{rows} rows of {vocab} tokens: {1e6 * ours:.0f} us, XLA {1e6 * theirs:.0f} us")

    assert drawing.problem(kernels, vocab) is None


def fastest(way: Any, *given: Any) -> float:
    """Seconds of a call, the least of ten."""
    step, seconds = jax.jit(way), []
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(step(*given))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@pytest.mark.parametrize("tokens", [1, 5, 64, 1024])
@pytest.mark.parametrize("kind", ["float", "int8", "fp8", "int4"])
def test_experts_are_those_of_xla(gpu: Any, kind: Any, tokens: int) -> None:
    """Of Qwen3 30B-A3B and of gpt-oss 20B. Raises where they differ."""
    kernels = ExpertKernels(routing_triton.route, experts_triton.through)
    for wide, inner, count, active in ((2048, 768, 128, 8), (2880, 2880, 32, 4)):
        maps = Shape(kind, 2 * inner, wide, gated=True), Shape(kind, wide, inner)
        ours, theirs = expert_products.measured(kernels, jnp.bfloat16, MixtureShape(*maps, count, active), tokens)

        print(f"{count} of {wide}x{inner} {kind}, {tokens}: {1e6 * ours:.0f} us, XLA {1e6 * theirs:.0f} us")


def test_a_row_does_not_depend_on_its_neighbours_and_comes_out_alike_each_time(gpu: Any) -> None:
    """Bit for bit, whichever program comes last to join the ranges of a text."""
    many = paged_case([2000, 1, 512, 257], heads=(8, 4, 128), most=2048, kv="bfloat16")
    together = attended(many, gpu)
    alone = evolve(many, count=np.array([1, 0, 0, 0]))

    np.testing.assert_array_equal(attended(alone, gpu, pad=6)[:1], together[:1])
    for _ in range(50):
        np.testing.assert_array_equal(attended(many, gpu), together)
