"""The ERNIE 4.5 family, dense: 0.3B; must not know files, pages or jax.

A Llama whose pairs are neighbours, and that may have biases everywhere. https://ernie.baidu.com/blog/publication/ERNIE_Technical_Report.pdf.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Ernie4_5ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads, bias = keys.size("hidden_size", 1024), keys.size("num_attention_heads", 16), keys.flag("use_bias")
    head_dim = keys.size("head_dim", 128)
    rotary = read_rotary(keys, head_dim, theta=500000.0, whole=True, interleaved=True)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 103424),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 3072),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=(Layer(rotary),) * keys.size("num_hidden_layers", 18, most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings", default=True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
    )
    return checked(keys, found)


NAMES = USUAL

GGUF = GgufTable(
    architecture="ernie4_5",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    },
    flags={"use_bias": "blk.0.attn_q.bias"},
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("ernie4_5",), read=read, names=NAMES, gguf=GGUF)
