"""The Gemma 2 family: 2B, 9B and 27B; must not know files, pages or jax.

Every other layer sees a window. Norms stand before and behind attention and MLP and multiply by 1 + w, scores of attention
and logits are capped by tanh, the MLP has GELU, embeddings are multiplied by the root of their width and are the head as
well. https://arxiv.org/abs/2408.00118.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, SANDWICH_NORMS, USUAL, gguf_tensors
from models.dense.record import ACTIVATIONS, FULL, SLIDING, Dense, Layer
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config

NAME = "Gemma2ForCausalLM"
_LAYERS_OF_27B = 46


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    kv_heads, head_dim = keys.size("num_key_value_heads", heads), keys.size("head_dim", 256)
    count, window = keys.size("num_hidden_layers", most=MOST_LAYERS), keys.size("sliding_window", 4096)
    bias = keys.flag("attention_bias")
    if keys.flag("use_bidirectional_attention"):
        keys.refuse("use_bidirectional_attention is true, and only models that write from left to right are served")
    rotary = read_rotary(keys, head_dim, whole=True)
    cap = keys.optional_number("attn_logit_softcapping")
    kinds = keys.each("layer_types", (SLIDING, FULL), [FULL if n % 2 else SLIDING for n in range(count)])
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 8192),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(Layer(rotary, window if kind == SLIDING else None, cap) for kind in kinds),
        tied=keys.flag("tie_word_embeddings", default=True),
        activation=keys.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        qkv_bias=bias,
        out_bias=bias,
        post_norms=True,
        norm_offset=1.0,
        scale=keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        embedding_scale=hidden**0.5,
        logit_cap=keys.optional_number("final_logit_softcapping"),
    )
    return checked(keys, found)


NAMES = {**USUAL, **SANDWICH_NORMS}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF has no key for the scale of queries, which 27B alone takes from its width."""
    spread = config["hidden_size"] // config["num_attention_heads"]
    scalar = spread if config["num_hidden_layers"] == _LAYERS_OF_27B else config["head_dim"]
    return config | {"query_pre_attn_scalar": scalar, "architectures": [NAME]}


GGUF = GgufTable(
    architecture="gemma2",
    tensors=gguf_tensors(NAMES),
    required={
        **GGUF_KEYS,
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    plus_one=tuple(stem for what, stem in NAMES.items() if what.endswith("norm")),
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("gemma2",), read=read, names=NAMES, gguf=GGUF)
