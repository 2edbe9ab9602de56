"""Programs without branches: they draw what those draw that look at their rows, in every kind, and never sort a vocabulary."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.sharding import make_mesh, named_sharding
from neuron_jax.engine import sampler, straight_sampler
from neuron_jax.engine.buckets import Draws, Key, SlotKey, StepKey
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.sampler import DRAW, FULL, RowParams
from tests.fakes import quick
from tests.fakes.engines import Client, logprobs, mixed, said, serve
from tests.neuron.engine.conftest import SLOTS, engines_of
from tests.neuron.engine.test_sampler import VOCAB, no_past, row_params, some_logits

ROWS = 64
KINDS = [Draws.PLAIN, Draws.CUT, Draws.FULL]
straight = {kind: quick.jit(partial(straight_sampler.sample, kind)) for kind in KINDS}
branching = quick.jit(sampler.sample)


def rows_of(kind: Draws, seed: int = 0) -> RowParams:
    """Rows that want all sorts of things which `kind` can do, greedy ones among them."""
    rng = np.random.default_rng(seed)
    some: dict[str, object] = {
        "temperature": rng.choice([0.0, 0.3, 1.0, 1.7], ROWS),
        "position": rng.integers(0, 2**31, ROWS),
    }
    if kind >= Draws.CUT:
        some |= {
            "top_k": rng.choice([0, 1, 3, 300, 2 * VOCAB], ROWS),
            "top_p": rng.choice([0.0, 0.3, 0.9, 0.999, 1.0], ROWS),
        }
        some["min_p"] = rng.choice([0.0, 0.0, 0.05, 0.5], ROWS)
    if kind >= Draws.FULL:
        some |= {
            "repetition": rng.choice([1.0, 1.2], ROWS),
            "frequency": rng.choice([0.0, 0.4], ROWS),
            "masked": rng.integers(0, 2, ROWS),
        }
    return row_params(ROWS, need=FULL if kind == Draws.FULL else DRAW, **some)


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_that_have_parts_of_the_vocabulary_draw_what_one_draws(devices: int) -> None:
    """Among equals the lowest token, whichever device has it; and a row in which nothing may come."""
    mesh, row, past = make_mesh(jax.devices("cpu")[:devices]), rows_of(Draws.PLAIN, seed=4), no_past(ROWS)
    logits = jnp.round(some_logits(ROWS) * 8) / 8
    logits = logits[:, : VOCAB // devices * devices].at[3].set(-jnp.inf).at[5].set(0)
    spread = jax.device_put(logits, named_sharding(mesh, (None, "vocab")))
    found = quick.jit(partial(straight_sampler.sample_by_parts, mesh))(spread, row, past)

    np.testing.assert_array_equal(found.token, straight[Draws.PLAIN](logits, row, past).token)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_draws_what_the_branches_draw(kind: Draws) -> None:
    """Ties among the logits included."""
    logits = jnp.round(some_logits(ROWS) * 8) / 8
    row, past = rows_of(kind), no_past(ROWS)
    masks = jnp.asarray(np.random.default_rng(1).integers(-(2**31), 2**31, (ROWS, -(-VOCAB // 32))), jnp.int32)
    past = past._replace(generated=past.generated.at[:, ::3].set(2))
    got, wanted = straight[kind](logits, row, past, masks), branching(logits, row, past, masks)

    assert (np.asarray(got.token) == np.asarray(wanted.token)).all()
    np.testing.assert_allclose(got.logprob, wanted.logprob, rtol=1e-5)
    assert (np.asarray(got.top_ids) == np.asarray(wanted.top_ids)).all()
    np.testing.assert_allclose(got.top_logprobs, wanted.top_logprobs, rtol=1e-5)


def test_a_kind_serves_those_who_want_less() -> None:
    logits = some_logits(ROWS)
    row = rows_of(Draws.PLAIN)
    plain, *others = (np.asarray(straight[kind](logits, row, no_past(ROWS)).token) for kind in KINDS)

    assert all((other == plain).all() for other in others)


def test_what_ties_with_the_last_one_kept_is_kept() -> None:
    drawn = straight[Draws.CUT](jnp.zeros((400, VOCAB)), row_params(400, top_k=10), no_past(400)).token

    assert (np.asarray(drawn) >= VOCAB // 2).mean() > 0.3


@pytest.mark.parametrize("vocab", [5, 700, 128 * straight_sampler.GROUP, 6001])
def test_the_likeliest_are_found_in_groups(vocab: int) -> None:
    """Of equals the lowest id first, and of vocabularies that are no multiple of a group or smaller than one."""
    values = jnp.asarray(np.random.default_rng(vocab).integers(0, 50, (3, vocab)), jnp.float32)
    count = min(20, vocab)
    best, ids = straight_sampler.likeliest(values, count)
    wanted, where = jax.lax.top_k(values, count)

    assert (np.asarray(best) == np.asarray(wanted)).all()
    assert (np.asarray(ids) == np.asarray(where)).all()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("draws", KINDS)
def test_a_step_on_a_gpu_has_no_branch_and_no_loop_of_unknown_length(runner: Runner, draws: Draws, steps: int) -> None:
    """What XLA is given of a step in which each token is a row: nothing that it would have to ask the host for."""
    program = runner.program
    text = program.lower(StepKey(4, 4, steps, draws)).as_text()
    vocabulary = f"x{program.model.vocab_size}x"

    assert "stablehlo.case" not in text
    assert "stablehlo.if" not in text
    assert not [line for line in text.splitlines() if "stablehlo.sort" in line and vocabulary in line]


@pytest.mark.parametrize("kernels", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_engine_of_such_programs_gives_the_same_answers(
    runner: Runner, new_engine: Callable[..., Engine], *, kernels: bool
) -> None:
    """Traffic of all kinds through slots that others had: each step is of the kind that its rows need, and no other. By XLA,
    and by kernels in Pallas' interpreter."""
    program = evolve(runner.program, drawing=_interpreted() if kernels else None)
    keys = [*(StepKey(SLOTS, SLOTS, 1, kind) for kind in KINDS), SlotKey()]
    with closing(Compiler(lambda key: quick.Quick(program.lower(key)), workers=2)) as compiler:
        compiler.start(keys)
        compiler.wait(keys, lambda done, total: None)
        own = Runner(program, compiler, runner.params)
        ran: list[Key] = []
        compiler.ready = {key: partial(_noted, ran, key, ready) for key, ready in compiler.ready.items()}
        clients = [Client(client.submit, client.begin, leave=None) for client in mixed(5, count=10)]
        got, wanted = (serve(engine(prefix=False), clients) for engine in (engines_of(own), new_engine))

    assert {request: said(outputs) for request, outputs in got.items()} == {
        request: said(outputs) for request, outputs in wanted.items()
    }
    assert set(ran) == set(keys)
    for ours, theirs in zip(chain(*map(logprobs, got.values())), chain(*map(logprobs, wanted.values())), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def _interpreted() -> Any:
    kernels = pytest.importorskip(
        "neuron_jax.engine.row_sampler", reason="this JAX has no Triton", exc_type=ImportError
    )
    ways = (partial(way, interpret=True) for way in (kernels.draw, kernels.with_logprobs))
    return straight_sampler.Drawing(*ways)


def _noted(ran: list[Key], key: Key, program: Callable[..., Any], *arguments: Any) -> Any:
    ran.append(key)
    return program(*arguments)
