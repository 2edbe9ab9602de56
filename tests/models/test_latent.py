"""Latent attention beyond what transformers' logits say: matrices stored as codes, and what each device keeps."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.errors import ModelError
from models.mapping import Rule
from models.native import library
from models.registry import build, read
from models.spec import PagedLayer
from models.storage import FLOAT32, Blocks, Storage
from tests.fakes.plain_pass import full_logits
from tests.fakes.weight_files import random_tensors

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 6,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 2,
    "num_experts_per_tok": 2,
    "vocab_size": 67,
}
KV_B = "model.layers.0.self_attn.kv_b_proj.weight"
CODED = Storage(8, 16, half=True)


@pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")
def test_codes_of_keys_and_values_give_what_their_floats_give() -> None:
    """What makes keys is turned around, and becomes floats; what makes values stays codes."""
    tensors: dict[str, Any] = random_tensors(build(CONFIG, dtype=jnp.float32))
    rng = np.random.default_rng(1)
    rows, columns = tensors[KV_B].shape
    scale = (rng.random((rows, columns // CODED.group)) / 500).astype(np.float16).astype(np.float32)
    blocks = Blocks(rng.integers(-128, 128, (rows, columns)).astype(np.int8), scale, None, CODED)

    found = []
    for stored in (blocks, blocks.dequantize()):
        kinds = dict.fromkeys(tensors, FLOAT32) | ({KV_B: CODED} if stored is blocks else {})
        model = build(CONFIG, dtype=jnp.float32, native=True, quant="stored", storage=kinds)
        storages = {rule.path: rule.storage(kinds) for rule in model.rules if isinstance(rule, Rule)}
        assert storages["layers.0.attention.k_up"] == FLOAT32
        assert storages["layers.0.attention.v_up"] == (CODED if stored is blocks else FLOAT32)
        found.append(full_logits(model, mapping.load(model.rules, tensors | {KV_B: stored}), list(range(20))))

    # A product with codes rounds each x by at most 2^-16 of its block's largest.
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=2**-14 * np.abs(found[1]).max())


def test_each_device_keeps_the_latent_for_its_heads() -> None:
    """One key and one value a token and device, whatever the number of heads."""
    assert list(read(CONFIG).layers) == [PagedLayer(1, 3, 38, 32)]
    assert list(build(CONFIG, tensor_parallel=2).layers) == [PagedLayer(2, 2, 38, 32)]


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        ({"num_key_value_heads": 1}, "all heads share one latent"),
        ({"moe_layer_freq": 2}, "moe_layer_freq must be 1"),
        ({"first_k_dense_replace": 0, "num_experts_per_tok": 5}, "5 of 4 experts cannot be active"),
        ({"first_k_dense_replace": 0, "n_group": 3}, "4 experts do not divide into 3 groups"),
        ({"architectures": ["DeepseekV2ForCausalLM"], "norm_topk_prob": True}, "norm_topk_prob must be false"),
        ({"architectures": ["DeepseekV2ForCausalLM"], "topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'"),
        (
            {
                "architectures": ["Glm4MoeLiteForCausalLM"],
                "num_hidden_layers": 2,
                "mlp_layer_types": ["sparse", "dense"],
            },
            "mlp_layer_types must have the dense layers first",
        ),
    ],
)
def test_what_is_not_served_is_refused(change: dict[str, Any], misfit: str) -> None:
    with pytest.raises(ModelError, match=misfit):
        read(CONFIG | change)
