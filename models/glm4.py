"""The GLM-4 family, dense: GLM-4-0414 of 9B and 32B, GLM-Z1; must not know files, pages or jax.

Norms before and behind attention and MLP, biases of q, k and v, half of each head turns, its pairs being neighbours, and
gate and up are one tensor. https://arxiv.org/abs/2406.12793.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import FUSED_GATE_UP, GGUF_KEYS, LAYER, USUAL, gguf_tensors, without
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Glm4ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads, head_dim = keys.size("num_attention_heads"), keys.size("head_dim", 128)
    rotary = read_rotary(keys, head_dim, share=0.5, interleaved=True)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1.5625e-7),
        stack=(Layer(rotary),) * keys.size("num_hidden_layers", most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=keys.flag("attention_bias", default=True),
        post_norms=True,
    )
    return checked(keys, found)


NAMES = {
    **without(USUAL, "mlp.gate", "mlp.up"),
    **FUSED_GATE_UP,
    "attention.post_norm": LAYER + "post_self_attn_layernorm",
    "mlp.post_norm": LAYER + "post_mlp_layernorm",
}

GGUF = GgufTable(
    architecture="glm4",
    tensors=gguf_tensors(NAMES),
    required={**GGUF_KEYS, "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim"},
    optional={"rope.freq_base": "rope_theta"},
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("glm4",), read=read, names=NAMES, gguf=GGUF)
