"""The Qwen3 family, dense: Qwen3, its Instruct-2507 and Thinking-2507, Qwen3Guard; must not know files, pages or jax.

0.6B to 32B. A Qwen2 but for norms of each head's query and key in place of biases, and heads as wide as the config says,
whatever the model's width is. https://arxiv.org/abs/2505.09388.
"""

from typing import Any

from models.config import Keys
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable
from models.qwen2 import windows
from models.rope import read_rotary
from models.spec import Config, Family, Model

NAME = "Qwen3ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads = keys.size("num_attention_heads")
    kv_heads, head_dim = keys.size("num_key_value_heads", heads), keys.size("head_dim", 128)
    if heads % kv_heads:
        keys.refuse(f"{heads} attention heads do not divide among {kv_heads} key-value heads")
    rotary = read_rotary(keys, head_dim)
    if rotary.rotated != head_dim:
        keys.refuse("partial_rotary_factor must be 1.0")
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
    keys.check()
    return found


_LAYER = "model.layers.{}."
NAMES = {
    "embed": "model.embed_tokens",
    "attention.norm": _LAYER + "input_layernorm",
    "attention.q": _LAYER + "self_attn.q_proj",
    "attention.q_norm": _LAYER + "self_attn.q_norm",
    "attention.k": _LAYER + "self_attn.k_proj",
    "attention.k_norm": _LAYER + "self_attn.k_norm",
    "attention.v": _LAYER + "self_attn.v_proj",
    "attention.out": _LAYER + "self_attn.o_proj",
    "mlp.norm": _LAYER + "post_attention_layernorm",
    "mlp.gate": _LAYER + "mlp.gate_proj",
    "mlp.up": _LAYER + "mlp.up_proj",
    "mlp.down": _LAYER + "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"architectures": [NAME]}


GGUF = GgufTable(
    architecture="qwen3",
    tensors={
        "token_embd": NAMES["embed"],
        "blk.{}.attn_norm": NAMES["attention.norm"],
        "blk.{}.attn_q": NAMES["attention.q"],
        "blk.{}.attn_q_norm": NAMES["attention.q_norm"],
        "blk.{}.attn_k": NAMES["attention.k"],
        "blk.{}.attn_k_norm": NAMES["attention.k_norm"],
        "blk.{}.attn_v": NAMES["attention.v"],
        "blk.{}.attn_output": NAMES["attention.out"],
        "blk.{}.ffn_norm": NAMES["mlp.norm"],
        "blk.{}.ffn_gate": NAMES["mlp.gate"],
        "blk.{}.ffn_up": NAMES["mlp.up"],
        "blk.{}.ffn_down": NAMES["mlp.down"],
        "output_norm": NAMES["norm"],
        "output": NAMES["head"],
    },
    required={
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    },
    optional={"attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"},
    finish=_finish,
)


def build(config: Config, **choices: Any) -> Model:
    """See `models.spec.Build`."""
    from models.dense.build import build_dense  # brings JAX, which who only reads configs does without

    return build_dense(read(config), NAMES, **choices)


FAMILY = Family(architectures=(NAME,), model_types=("qwen3",), read=read, build=build, gguf=(GGUF,))
