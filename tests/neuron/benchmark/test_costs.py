"""What a step moves and multiplies, counted by hand for the tiny Llama."""

import jax.numpy as jnp
import pytest

from models.registry import build
from neuron_jax.benchmark.costs import costs
from tests.fakes.tiny_llama import CONFIG

WIDTH, MLP, VOCAB, LAYERS = 32, 48, 300, 2
LAYER = WIDTH * WIDTH * 2 + WIDTH * WIDTH // 2 * 2 + 3 * WIDTH * MLP  # q, o; k, v of half the heads; gate, up, down
NORMS = (2 * LAYERS + 1) * WIDTH


def test_the_tiny_llama_costs_what_its_shapes_say() -> None:
    found = costs(build(CONFIG, dtype=jnp.float32), CONFIG, kv_token=256)

    assert found.matmul == LAYERS * LAYER
    assert found.head == VOCAB * WIDTH
    assert found.weights == 4 * (LAYERS * LAYER + VOCAB * WIDTH + NORMS)
    assert found.decode_bytes(3, 100.5) == found.weights + 3 * 100.5 * 256
    assert found.attention == 2 * LAYERS * WIDTH  # 4 heads of 8: scores, and the values mixed
    assert found.prefill_flops(2) == 2 * (2 * LAYERS * LAYER + VOCAB * WIDTH + 3 * found.attention)


def test_a_table_that_is_only_looked_up_in_is_not_read_by_a_step() -> None:
    """With a head of its own the embedding gives a row per token."""
    tied = costs(build(CONFIG, dtype=jnp.float32), CONFIG, kv_token=256)
    untied = CONFIG | {"tie_word_embeddings": False}

    assert costs(build(untied, dtype=jnp.float32), untied, kv_token=256) == tied


@pytest.mark.parametrize("quant", ["int8"])
def test_quantized_weights_are_fewer_bytes_and_as_many_flops(quant: str) -> None:
    plain = costs(build(CONFIG, dtype=jnp.float32), CONFIG, kv_token=256)
    small = costs(build(CONFIG, quant=quant, dtype=jnp.float32), CONFIG, kv_token=256)

    assert small.weights < plain.weights / 2
    assert (small.matmul, small.head, small.attention) == (plain.matmul, plain.head, plain.attention)
