"""The GPU's kernel of recurrent layers in Pallas' interpreter: XLA's answers for rows of any kind; and which layers get it."""

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.dense.mamba import MambaRule
from models.native.recurrent import FOLLOWS
from models.registry import build
from models.sharding import make_mesh
from neuron_jax.engine import recurring
from neuron_jax.engine.attention.choose import RUNGS, choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.ragged import ragged
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import StepKey
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.recurrent import Snapshots, recur, state_rows
from tests.fakes import quick
from tests.fakes.hybrid_files import CONFIGS
from tests.neuron.engine.test_native_recurrent import (
    CONVOLUTION,
    DELTA,
    MAMBA,
    PAGE,
    SLOTS,
    SNAPSHOTS,
    brought,
    rule_of,
    states,
)

pytest.importorskip("models.recurrent_rows", reason="this JAX has no Triton", exc_type=ImportError)

TOKENS, ROWS = 75, 4
CASES = {
    "one begins, one goes on, one loads": ([0, 1, 2], [0, 30, 16], [33, 1, 20], [0, 0, 3], [1, 2, 4]),
    "single tokens": ([2, 1, 0], [5, 16, 0], [1, 1, 1], [0, 1, 0], [0, 2, 0]),
    "kept where it began itself": ([1], [16], [18], [2], [2]),
    "up to a page, and over it": ([0, 1, 2], [15, 0, 8], [1, 16, 25], [0, 0, 0], [1, 2, 3]),
    "kept at its first token": ([2, 0], [32, 3], [4, 1], [0, 0], [4, 0]),
    "guesses that follow": ([0, 0, 0, 2], [8, 9, 10, 3], [1, 1, 1, 5], [0, FOLLOWS, FOLLOWS, 0], [0, 3, 4, 0]),
    "guesses behind a snapshot": ([1, 1, 2, 0], [16, 17, 0, 40], [1, 1, 33, 1], [4, FOLLOWS, 0, 0], [2, 3, 1, 0]),
    "nothing": ([], [], [], [], []),
}


def prepared(kind: Any) -> tuple[Any, Any]:
    """By the kernel, and by XLA: what tokens are given, and the states behind."""

    def run(by: Any, rule: Any, tokens: Any, cache: Any, told: jax.Array) -> Any:
        slot, start, count, load, save = told
        rows = ragged({}, slot, start, count, TOKENS)
        where = Snapshots(load, save, PAGE, guesses=True)
        if by is None:
            return recur(rule, tokens, cache, rows, where)
        return by(rule, tokens, cache, state_rows(rows, where))

    rule = rule_of(kind, np.random.default_rng(1))
    kernel = partial(recurring.by_kernel, interpret=True)
    ours, theirs = (quick.jit(partial(run, by, rule)) for by in (kernel, None))
    return ours, theirs


@pytest.fixture(scope="module", params=[DELTA, MAMBA, CONVOLUTION], ids=["delta", "mamba", "convolution"])
def ways(request: pytest.FixtureRequest) -> Any:
    return request.param, *prepared(request.param)


def padded(told: Any) -> jax.Array:
    """With rows of no tokens, in the slot that nobody reads."""
    spare = ROWS - len(told[0])
    return jnp.asarray(
        [[*line, *[rest] * spare] for line, rest in zip(told, (SLOTS, 0, 0, 0, 0), strict=True)], jnp.int32
    )


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_computes_what_xla_does(ways: Any, case: str) -> None:
    """Padding gets zeros, and what no row keeps stays as it was."""
    kind, ours, theirs = ways
    rng, told = np.random.default_rng(2), CASES[case]
    count, given = sum(told[2]), (brought(kind, rng, TOKENS), states(kind, rng), padded(told))
    (got, left), (wanted, expected) = (jax.tree.map(np.asarray, way(*given)) for way in (ours, theirs))

    np.testing.assert_allclose(got[:count], wanted[:count], rtol=0, atol=1e-4)
    assert not got[count:].any()
    for found, other in zip(left, expected, strict=True):
        trash = 1 if found.shape[0] == SNAPSHOTS + 1 else 0  # nobody reads snapshot 0
        np.testing.assert_allclose(found[trash:SLOTS], other[trash:SLOTS], rtol=0, atol=1e-4)


def test_a_text_gets_the_same_bits_however_it_is_cut(ways: Any) -> None:
    kind, ours, _ = ways
    rng = np.random.default_rng(3)
    tokens, cache = brought(kind, rng, TOKENS), states(kind, rng)
    whole, _ = ours(tokens, cache, padded(([1], [0], [TOKENS], [0], [0])))
    found, start = [], 0
    for size in (1, 30, 2, 42):
        piece = jax.tree.map(lambda leaf, at=start: np.roll(leaf, -at, 0), tokens)
        given, cache = ours(piece, cache, padded(([1], [start], [size], [0], [0])))
        found.append(np.asarray(given)[:size])
        start += size

    assert start == TOKENS
    assert np.array_equal(np.concatenate(found), whole)


@pytest.mark.parametrize("name", ["qwen35", "granitehybrid", "lfm2"])
def test_devices_go_through_their_own_heads(name: str) -> None:
    """Two of them, in place, what one does."""
    mesh = make_mesh(jax.devices("cpu")[:2])
    ((layer, seen),) = program_of(name, devices=2).rules(StepKey(1, 1)).items()
    rule, inputs, cache = recurring._some(layer, seen)
    alone, spread = (partial(recurring.by_kernel, interpret=True, mesh=over) for over in (None, mesh))
    one, both = (quick.jit(partial(recurring._step, by, rule))(inputs, cache) for by in (alone, spread))

    for ours, theirs in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-6, atol=1e-6)


GPU = SimpleNamespace(platform="gpu", compute_capability="8.6")


def program_of(name: str, devices: int = 1) -> Program:
    model = build(CONFIGS[name], quant="none", dtype=jnp.float32, tensor_parallel=devices)
    mesh = make_mesh(jax.devices("cpu")[:devices])
    attention = choose(Case(mesh, jnp.float32, KVFormat("float32"), 8, PAGE, kinds(model)), RUNGS[-1:])
    return Program(model, mesh, Shapes(PAGE, (8,), 2, 64, 2), attention)


@pytest.mark.parametrize("name", ["qwen35", "granitehybrid", "lfm2"])
def test_recurrent_layers_get_the_kernel(name: str) -> None:
    """None on a CPU; and the process that is to try it is told all of it."""
    found = program_of(name).rules(StepKey(1, 1))
    chosen = recurring.choose(GPU, found, tried=False)

    ((layer, seen),) = found.items()
    ((asked_layer, asked),) = [recurring._asked(json.loads(json.dumps(recurring._told(layer, seen))))]

    assert [*chosen] == [layer]
    assert (asked.rule, asked.token) == (seen.rule, seen.token)
    assert [leaf.shape for leaf in asked_layer.state] == [leaf.shape for leaf in layer.state]
    assert recurring.choose(SimpleNamespace(platform="cpu"), found, tried=False) == {}


def test_a_trial_finds_what_is_wrong() -> None:
    """XLA's own way passes; a kernel whose states fade otherwise does not."""
    ((layer, seen),) = program_of("granitehybrid").rules(StepKey(1, 1)).items()

    def by_xla(rule: Any, inputs: Any, cache: Any, rows: Any) -> Any:
        where = ragged({}, rows.slot, rows.start, rows.count, jax.tree.leaves(inputs)[0].shape[0])
        return recur(rule, inputs, cache, where, Snapshots(rows.load, rows.save, rows.page_size, rows.guesses))

    def faster(rule: MambaRule, *given: Any) -> Any:
        rate, *others = rule.heads
        return by_xla(evolve(rule, heads=(rate * 2, *others)), *given)

    assert recurring.problem(by_xla, layer, seen) is None
    assert "differs by" in str(recurring.problem(faster, layer, seen))
