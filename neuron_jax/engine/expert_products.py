"""Which kernels compute a model's experts in a step: those that give what XLA gives, and are faster.

Knows mixtures by their shapes, no model and no requests. See `products`, of which this is the like.
"""

import logging
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import asdict, evolve, frozen
from flax import nnx
from jax.sharding import Mesh

from models.dense.record import RELU2, SILU, Experts
from models.experts_xla import ExpertsXla
from models.linears import Linears
from models.matrices import Kind, Shape
from models.mixtures import ExpertKernels, MixtureShape, computing
from models.nn import RMSNorm
from models.spread import experts_over
from neuron_jax.engine import products, trials
from neuron_jax.engine.attention.trial import tolerance
from neuron_jax.engine.products import BITS, WrongError, some_exponents, some_values
from neuron_jax.engine.trials import Trial, Verdict

log = logging.getLogger("neuron.engine")

QUANT: Mapping[Kind, str] = {"float": "none", "int8": "int8", "int4": "int4", "fp8": "fp8", "mxfp4": "stored"}
"""How a model is kept whose experts are of such a kind."""

TOKENS = (1, 16, 64, 1024)
"""Of a trial, as `products.ROWS`."""

MOST_BYTES = 1 << 30
"""Of the matrices of a trial, in which there are as many experts as this holds."""

INT8 = 0.03
"""Of the largest value: by so much two products with activations rounded to int8 may differ from those that are not."""


@frozen
class ExpertProducts:
    """`models.mixtures.Choose`: the kernels for up to `most` tokens of a mixture; all that there are where it is the last of
    TOKENS."""

    kernels: ExpertKernels
    most: Mapping[MixtureShape, int]

    def __call__(self, shape: MixtureShape, tokens: int) -> ExpertKernels | None:
        most = self.most.get(shape, 0)
        return self.kernels if tokens <= most or most == TOKENS[-1] else None

    def on(self, mesh: Mesh) -> "ExpertProducts":
        """For experts that lie on all its devices."""
        return self if mesh.size == 1 else evolve(self, kernels=experts_over(mesh, self.kernels))


def choose(device: Any, dtype: Any, shapes: Collection[MixtureShape], *, tried: bool = True) -> ExpertProducts | None:
    """As `products.choose`."""
    if not products.serves(device, dtype) or not shapes:
        return None
    try:  # later versions of JAX have no Triton
        from models import experts_triton, routing_triton
    except ImportError:
        return None
    able = [shape for shape in sorted(shapes, key=str) if experts_triton.refuses(shape) is None]
    found = [Verdict(rows=TOKENS[-1])] * len(able)
    if tried:
        asked = [Trial("experts", {"dtype": jnp.dtype(dtype).name, "shape": asdict(shape)}) for shape in able]
        found = trials.tried(asked, device)
    for shape, one in zip(able, found, strict=True):
        trials.say("experts: %s up to %d tokens%s", shape, one.rows, f"; {one.why}" if one.why else "")
    most = {shape: one.rows for shape, one in zip(able, found, strict=True)}
    return ExpertProducts(ExpertKernels(routing_triton.route, experts_triton.through), most)


def verdict(asked: Mapping[str, Any], device: Any) -> Verdict:
    """As `products.verdict`."""
    from models import experts_triton, routing_triton

    del device
    maps = {name: Shape(**asked["shape"][name]) for name in ("gate_up", "down")}
    shape = MixtureShape(**{**asked["shape"], **maps})
    kernels = ExpertKernels(routing_triton.route, experts_triton.through)
    return products.compared(shape, partial(measured, kernels, jnp.dtype(asked["dtype"])), TOKENS)


def measured(kernels: ExpertKernels, dtype: Any, shape: MixtureShape, tokens: int) -> tuple[float, float]:
    """Seconds for `tokens` to go through experts by `kernels`, and by XLA. Raises WrongError where they differ."""
    graph, leaves = some_experts(shape, dtype)
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (tokens, shape.gate_up.inputs), dtype)
    logits = jax.random.normal(keys[1], (tokens, _count(shape)), jnp.float32)
    ours, theirs = (jax.jit(partial(_through, graph, way)) for way in (kernels, None))
    got, wanted = (jnp.asarray(way(leaves, x, logits), jnp.float32) for way in (ours, theirs))
    off = float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max())
    # What is between the two matrices is rounded, and where XLA multiplies int8 to so many steps. A NaN is not right either.
    if not off <= max(2 * tolerance(dtype), INT8 if shape.gate_up.kind == "int8" else 0):
        raise WrongError(f"differs by {off:.1g} of the largest value")
    return products.fastest(ours, leaves, x, logits), products.fastest(theirs, leaves, x, logits)


def some_experts(shape: MixtureShape, dtype: Any) -> tuple[Any, Any]:
    """A layer's experts of such a shape, as graph and random leaves, as many as MOST_BYTES hold."""
    activation = SILU if shape.gate_up.gated else RELU2
    experts = Experts(count=_count(shape), active=shape.active, width=shape.down.inputs)
    coded = shape.gate_up.kind == "mxfp4"
    make = Linears(QUANT[shape.gate_up.kind], dtype, coded=("experts.gate_up", "experts.down") if coded else ())
    made = make.experts("experts", experts, activation, shape.gate_up.inputs, experts.width)
    graph, leaves = nnx.split(made)

    def some(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if coded and path[-1] == "scale":
            return some_exponents(leaf.shape)
        return some_values(leaf.shape, leaf.dtype)

    return graph, nnx.map_state(some, leaves)


def _through(graph: Any, kernels: ExpertKernels | None, leaves: Any, x: jax.Array, logits: jax.Array) -> jax.Array:
    made: ExpertsXla = nnx.merge(graph, leaves)
    with computing(None if kernels is None else lambda *_: kernels):
        return made(x, logits, None, norm=RMSNorm(x.shape[1], 1e-5, weighted=False))


def _count(shape: MixtureShape) -> int:
    """How many experts are tried: no fewer than are active."""
    each = sum(one.outputs * one.inputs * BITS[one.kind] // 8 for one in (shape.gate_up, shape.down))
    return max(shape.active, min(shape.count, MOST_BYTES // each))
