"""The native kernels of recurrent layers: what XLA computes, and the same bits in whatever rows a text comes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.dense.convolution import ConvolutionRule
from models.dense.delta import DeltaRule
from models.dense.mamba import MambaRule, Together
from models.dense.record import GatedDelta, Mamba2, ShortConvolution, recurrent_layer
from models.native import library
from models.native.ops import Norm
from neuron_jax.engine.attention.ragged import ragged
from neuron_jax.engine.recurrent import Snapshots, recur, state_rows, state_specs
from tests.fakes import quick

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")

PAGE, SLOTS, SNAPSHOTS = 16, 3, 4
DELTA, CONVOLUTION = GatedDelta(3, 6, 16, 48, 4), ShortConvolution(3)
MAMBA = Mamba2(6, 3, 48, 16, 4, 1e-5)
WIDTH = 37
LAYERS = {kind: recurrent_layer(kind, WIDTH, 1) for kind in (DELTA, CONVOLUTION, MAMBA)}
KINDS = pytest.mark.parametrize("kind", [DELTA, CONVOLUTION, MAMBA], ids=["delta", "convolution", "mamba"])


def rule_of(kind: Any, rng: np.random.Generator) -> Any:
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    if kind == CONVOLUTION:
        return ConvolutionRule(draw(3, 1, WIDTH), draw(1, WIDTH))
    if kind == MAMBA:
        heads = -jnp.exp(draw(3, 2)), draw(3, 2), draw(3, 2)
        return MambaRule(draw(4, 3, 128), draw(3, 128), heads, Norm(draw(3, 2, 48), 1e-5), Together.plan(MAMBA, 1))
    return DeltaRule(draw(4, 3, 128), -jnp.exp(draw(3, 2)), draw(3, 2), Norm(draw(48), 1e-6))


def brought(kind: Any, rng: np.random.Generator, count: int) -> Any:
    draw = lambda *shape: rng.standard_normal((count, *shape)).astype(np.float32)
    if kind == CONVOLUTION:
        return draw(1, 3, WIDTH)
    return draw(3, 128), draw(3, 2) if kind == MAMBA else draw(3, 2, 2), draw(3, 2, 48)


def states(kind: Any, rng: np.random.Generator) -> Any:
    specs = state_specs(LAYERS[kind], slots=SLOTS, snapshots=SNAPSHOTS)
    return tuple(jnp.asarray(rng.standard_normal(spec.shape), jnp.float32) for spec in specs)


def step(rule: Any, tokens: Any, cache: Any, told: Any, *, native: bool) -> Any:
    """`told`: slot, start, count, load and save of each row, [5, R]."""

    @quick.jit
    def run(tokens: Any, cache: Any, told: jax.Array) -> Any:
        slot, start, count, load, save = told
        rows = ragged({}, slot, start, count, jax.tree.leaves(tokens)[0].shape[0])
        where = Snapshots(load, save, PAGE, guesses=True)
        return (
            rule.native(tokens, cache, state_rows(rows, where)) if native else recur(rule, tokens, cache, rows, where)
        )

    return jax.tree.map(np.asarray, run(tokens, cache, jnp.asarray(told, jnp.int32)))


CASES = {
    "one begins, one goes on, one loads": ([0, 1, 2], [0, 30, 16], [70, 1, 20], [0, 0, 3], [1, 2, 4]),
    "single tokens": ([2, 1, 0, 3], [5, 16, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 2, 0, 0]),
    "kept where an earlier row began": ([0, 1], [16, 0], [1, 40], [2, 0], [0, 2]),
    "kept where it began itself": ([1], [16], [18], [2], [2]),
    "guesses": ([1, 1, 1, 2, 2], [16, 17, 18, 5, 6], [1, 1, 1, 1, 1], [0, -1, -1, 3, -1], [1, 2, 4, 0, 3]),
    "guesses beside a prompt": (
        [1, 1, 0, 2, 2],
        [5, 6, 0, 9, 10],
        [1, 1, 40, 1, 1],
        [0, -1, 0, 2, -1],
        [0, 1, 4, 0, 3],
    ),
}


@KINDS
@pytest.mark.parametrize("case", CASES)
def test_it_is_what_xla_computes(kind: Any, case: str) -> None:
    rng = np.random.default_rng(1)
    told = CASES[case]
    count = sum(told[2])
    rule, tokens, cache = rule_of(kind, rng), brought(kind, rng, count + 3), states(kind, rng)
    given, left = step(rule, tokens, cache, told, native=True)
    wanted, expected = step(rule, tokens, cache, told, native=False)

    np.testing.assert_allclose(given[:count], wanted[:count], rtol=0, atol=1e-4)
    for found, other in zip(left, expected, strict=True):
        trash = 1 if found.shape[0] == SNAPSHOTS + 1 else 0  # nobody reads snapshot 0
        np.testing.assert_allclose(found[trash:SLOTS], other[trash:SLOTS], rtol=0, atol=1e-4)


@KINDS
def test_a_text_gets_the_same_bits_however_it_is_cut(kind: Any) -> None:
    """At once; and in pieces of any length behind another text, kept and gone on from in another slot."""
    rng = np.random.default_rng(2)
    rule, tokens = rule_of(kind, rng), brought(kind, rng, 150)
    before = states(kind, rng)
    whole, (*_,) = step(rule, tokens, before, ([0], [0], [150], [0], [0]), native=True)

    found, cache, start, load = [], before, 0, 0
    for size, slot, save in ((1, 0, 0), (2, 0, 0), (63, 0, 1), (70, 1, 0), (16, 1, 0)):
        piece = jax.tree.map(lambda leaf, at=start, size=size: leaf[at : at + size], tokens)
        other = brought(kind, rng, 5)
        both = jax.tree.map(lambda a, b: np.concatenate([a, b]), other, piece)
        told = ([2, slot], [3, start], [5, size], [0, load], [0, save])
        given, cache = step(rule, both, cache, told, native=True)
        found.append(given[5:])
        start, load = start + size, 0
        if save:  # its state behind the last whole page before its last token
            start, load = (start - 1) // PAGE * PAGE, save
            found = [np.concatenate(found)[:start]]
    assert np.array_equal(np.concatenate(found), whole)
