"""The Seed-OSS family: 36B, its Base and Instruct; must not know files, pages or jax.

A Llama with heads as wide as the config says, and biases on queries, keys and values. https://github.com/ByteDance-Seed/seed-oss.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors, without
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "SeedOssForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads, head_dim = keys.size("num_attention_heads", 80), keys.size("head_dim", 128)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 155136),
        hidden_size=keys.size("hidden_size", 4096),
        intermediate_size=keys.size("intermediate_size", 27648),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 524288),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=(Layer(read_rotary(keys, head_dim, whole=True)),) * keys.size("num_hidden_layers", 64, most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=keys.flag("attention_bias", default=True),
        out_bias=keys.flag("attention_out_bias"),
        mlp_bias=keys.flag("mlp_bias"),
    )
    return checked(keys, found)


NAMES = USUAL

GGUF = GgufTable(
    architecture="seed_oss",
    tensors=gguf_tensors(without(NAMES, "mlp.norm")) | {"blk.{}.post_attention_norm": NAMES["mlp.norm"]},
    required={**GGUF_KEYS, "attention.key_length": "head_dim"},
    optional={"attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"},
    flags={"attention_bias": "blk.0.attn_q.bias"},
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("seed_oss",), read=read, names=NAMES, gguf=GGUF)
