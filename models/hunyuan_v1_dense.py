"""The Hunyuan family, dense: 0.5B, 1.8B, 4B and 7B; must not know files, pages or jax.

A Qwen3 whose heads are normed after they have turned, and whose base is stretched for long texts by a number of the config,
`alpha`. https://github.com/Tencent-Hunyuan/Hunyuan-7B.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, LAYER, USUAL, Names, gguf_tensors
from models.dense.record import SILU, Dense, Experts, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "HunYuanDenseV1ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    return checked(keys, read_hunyuan(keys, None))


def read_hunyuan(keys: Keys, experts: Experts | None) -> Dense:
    """The decoder, with these experts in each layer; `keys` gathers what is wrong."""
    hidden, heads = keys.size("hidden_size", 4096), keys.size("num_attention_heads", 32)
    head_dim, bias = keys.optional_size("head_dim") or hidden // heads, keys.flag("attention_bias")
    layer = Layer(read_rotary(keys, head_dim, whole=True), experts=experts)
    return Dense(
        architecture=keys.subject,
        vocab_size=keys.size("vocab_size", 290943),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 11008),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 2048),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=(layer,) * keys.size("num_hidden_layers", 32, most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        turned_norms=True,
    )


HEAD_NORMS: Names = {
    "attention.q_norm": LAYER + "self_attn.query_layernorm",
    "attention.k_norm": LAYER + "self_attn.key_layernorm",
}
NAMES = {**USUAL, **HEAD_NORMS}

GGUF = GgufTable(
    architecture="hunyuan-dense",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    },
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("hunyuan_v1_dense",), read=read, names=NAMES, gguf=GGUF)
