"""The Qwen3 family, dense: Qwen3, its Instruct-2507 and Thinking-2507, Qwen3Guard; must not know files, pages or jax.

0.6B to 32B, and Qwen3-Embedding and Qwen3-Reranker with the files of sentence-transformers. A Qwen2 but for norms of each
head's query and key in place of biases, and heads as wide as the config says, whatever the model's width is. https://arxiv.org/abs/2505.09388.
"""

from models.config import Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, QK_NORMS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.qwen2 import windows
from models.rope import read_rotary
from models.spec import Config

NAME = "Qwen3ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads = keys.size("num_attention_heads")
    kv_heads, head_dim = keys.size("num_key_value_heads", heads), keys.size("head_dim", 128)
    rotary = read_rotary(keys, head_dim, whole=True)
    bias = keys.flag("attention_bias")
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 32768),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(Layer(rotary, window) for window in windows(keys)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
    )
    return checked(keys, found)


NAMES = {**USUAL, **QK_NORMS}


GGUF = GgufTable(
    architecture="qwen3",
    tensors=gguf_tensors(NAMES),
    required={**GGUF_KEYS, "attention.key_length": "head_dim"},
    optional={"attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"},
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("qwen3",), read=read, names=NAMES, gguf=GGUF)
