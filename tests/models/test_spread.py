"""Products and experts over two devices, each with the kernels of one in Pallas' interpreter, against XLA's own splitting."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping, matrices, mixtures
from models.attend import causal
from models.matrices import Shape
from models.mixtures import ExpertKernels, MixtureShape
from models.registry import build
from models.sharding import make_mesh, shard_tree
from models.spread import experts_over, over
from tests.fakes.weight_files import random_tensors

few_rows = pytest.importorskip("models.few_rows", reason="this JAX has no Triton", exc_type=ImportError)
experts_triton = pytest.importorskip("models.experts_triton", reason="this JAX has no Triton", exc_type=ImportError)
routing_triton = pytest.importorskip("models.routing_triton", reason="this JAX has no Triton", exc_type=ImportError)

OSS = {
    "architectures": ["GptOssForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 192,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "layer_types": ["full_attention"],
}
"""With biases wherever there may be some."""


@pytest.mark.parametrize("quant", ["none", "int8", "int4", "fp8"])
def test_two_devices_with_kernels_say_what_they_say_without(quant: str) -> None:
    """Each matrix by its own half, the router and the experts among them."""
    made = build(OSS, tensor_parallel=2, quant=quant, dtype=jnp.float32)
    mesh = make_mesh(jax.devices("cpu")[:2])
    params = shard_tree(mapping.load(made.rules, random_tensors(made)), made.param_specs, mesh)
    asked: set[Any] = set()

    def run(params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = made.forward(params, tokens, jnp.arange(len(tokens)), causal(), [None])
        return made.logits(params, hidden)

    def choose(shape: Shape, rows: int) -> Any:
        asked.add(shape)
        able = few_rows.refuses(shape) is None and rows <= few_rows.most_rows(shape)
        return over(mesh, partial(few_rows.product, interpret=True)) if able else None

    def mix(shape: MixtureShape, tokens: int) -> Any:
        assert experts_triton.refuses(shape) is None
        asked.add(shape)
        own = ExpertKernels(
            partial(routing_triton.route, interpret=True), partial(experts_triton.through, interpret=True)
        )
        return experts_over(mesh, own)

    for tokens in (jnp.asarray([3]), jnp.asarray([3, 5, 7])):
        asked.clear()
        plain = np.asarray(jax.jit(run)(params, tokens))
        with matrices.computing(choose), mixtures.computing(mix):
            ours = np.asarray(jax.jit(partial(run))(params, tokens))

        assert len(asked) == 5
        assert Shape("exact", 8, 64) in asked
        # Only the kernels leave activations as they are where weights are int8.
        assert np.abs(ours - plain).max() <= np.abs(plain).max() * (3e-2 if quant in {"int8", "int4"} else 1e-4)
