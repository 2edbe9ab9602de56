"""Whether our kernels draw where top-k or top-p cut a row: tried against what XLA draws. Knows vocabularies, no requests."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from neuron_jax.engine import straight_sampler, trials
from neuron_jax.engine.sampler import DRAW, RowParams
from neuron_jax.engine.straight_sampler import Drawing
from neuron_jax.engine.trials import Trial, Verdict

log = logging.getLogger("neuron.engine")

ROWS = 64
"""Of a trial."""

ALIKE = 0.95
"""Of them at least so many must draw XLA's token: where a cut, or a draw, is closer than rounding, another may come out."""

CLOSE = 1e-3
"""By which log-probabilities may differ."""


def choose(device: Any, vocab: int, *, tried: bool, mesh: Mesh | None = None) -> Drawing | None:
    """None where XLA draws, as where there is no GPU from Ampere on. Kernels are tried in another process, where they are to be
    `tried`. All devices of a `mesh` draw the same."""
    if device.platform != "gpu" or float(device.compute_capability) < 8:
        return None
    try:  # later versions of JAX have no Triton
        from neuron_jax.engine import row_sampler
    except ImportError:
        return None
    found = trials.tried([Trial("drawing", {"vocab": vocab})], device) if tried else [Verdict()]
    if found[0].why is not None:
        trials.say("XLA draws: %s", found[0].why)
        return None
    kernels = Drawing(row_sampler.draw, row_sampler.with_logprobs)
    return kernels if mesh is None else over(mesh, kernels)


def over(mesh: Mesh, kernels: Drawing) -> Drawing:
    """`kernels` on every device of `mesh`, which all have the logits whole."""

    def on_each(way: Callable[..., Any]) -> Callable[..., Any]:
        whole = PartitionSpec()
        return jax.shard_map(way, mesh=mesh, in_specs=(whole, whole), out_specs=whole, check_vma=False)

    return Drawing(on_each(kernels.draw), on_each(kernels.with_logprobs))


def verdict(asked: Mapping[str, Any], device: Any) -> Verdict:
    """On the kernels for a vocabulary that another process asked to have tried here, on its default device."""
    from neuron_jax.engine import row_sampler

    del device
    why = problem(Drawing(row_sampler.draw, row_sampler.with_logprobs), asked["vocab"])
    return Verdict(why, final=why is None or why.startswith("differs"))


def problem(kernels: Drawing, vocab: int) -> str | None:
    """Why `kernels` will not do; None when they do."""
    try:
        logits, row = some_rows(vocab, seed=0)
        got, wanted = (np.asarray(jax.jit(way)(logits, row)) for way in (kernels.draw, straight_sampler.drawn_by_cuts))
        alike = float((got == wanted).mean())
        if not alike >= ALIKE:
            return f"differs: of the tokens drawn {alike:.0%} are XLA's"
        ways = (kernels.with_logprobs, straight_sampler.with_logprobs)
        ours, theirs = (jax.jit(way)(logits, jnp.asarray(wanted)) for way in ways)
        for one, other in ((ours.logprob, theirs.logprob), (ours.top_logprobs, theirs.top_logprobs)):
            off = float(np.abs(np.asarray(one) - np.asarray(other)).max())
            if not off <= CLOSE:
                return f"differs in a log-probability by {off:.1g}"
    except Exception as error:  # whatever a compiler says no with
        log.warning("the kernels that draw failed their trial", exc_info=True)
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def some_rows(vocab: int, *, seed: int) -> tuple[jax.Array, RowParams]:
    """Logits, some of which are equal and some minus infinity, and rows that cut in every way, greedy ones among them."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((ROWS, vocab)).astype(np.float32) * rng.choice([0.1, 1.0, 3.0, 10.0], (ROWS, 1))
    logits[::3] = np.round(logits[::3] * 8) / 8
    logits[1::4][:, rng.random(vocab) < 0.9] = -np.inf
    bits = [rng.integers(0, 2**32, ROWS, dtype=np.uint32) for _ in range(3)]
    floats = {name: jnp.zeros(ROWS, jnp.float32) for name in ("presence", "frequency")}
    ints = {name: jnp.zeros(ROWS, jnp.int32) for name in ("biased", "masked")}
    row = RowParams(
        slot=jnp.arange(ROWS, dtype=jnp.int32),
        position=jnp.asarray(bits[0]),
        seed_low=jnp.asarray(bits[1]),
        seed_high=jnp.asarray(bits[2]),
        temperature=jnp.asarray(rng.choice([0.0, 0.3, 1.0, 1.7], ROWS), jnp.float32),
        top_k=jnp.asarray(rng.choice([0, 1, 3, 40, 2 * vocab], ROWS), jnp.int32),
        top_p=jnp.asarray(rng.choice([0.0, 0.3, 0.9, 0.999, 1.0, 1.0], ROWS), jnp.float32),
        min_p=jnp.asarray(rng.choice([0.0, 0.0, 0.05, 0.5, 1.0], ROWS), jnp.float32),
        repetition=jnp.ones(ROWS, jnp.float32),
        need=jnp.full(ROWS, DRAW, jnp.int32),
        full_until=jnp.zeros(ROWS, jnp.uint32),
        **floats,
        **ints,
    )
    return jnp.asarray(logits), row
