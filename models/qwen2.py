"""The Qwen2 family: Qwen2 and 2.5, their Coder and Math, QwQ, DeepSeek-R1's distillations; must not know files, pages or jax.

0.5B to 72B. A Llama but for biases on queries, keys and values, and for windows, which no released size has switched on.
https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2412.15115.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config, Family, Model

NAME = "Qwen2ForCausalLM"
SLIDING, FULL = "sliding_attention", "full_attention"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    if heads % kv_heads:
        keys.refuse(f"{heads} attention heads do not divide among {kv_heads} key-value heads")
    rotary = read_rotary(keys, head_dim)
    if rotary.rotated != head_dim:
        keys.refuse("partial_rotary_factor must be 1.0")
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 32768),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(Layer(rotary, window) for window in windows(keys)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=True,
    )
    keys.check()
    return found


def windows(keys: Keys) -> list[int | None]:
    """How far back each layer sees; None: to the beginning. `sliding_window` counts only where it is switched on, and then
    from layer `max_window_layers` on, unless `layer_types` says it of each.
    """
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    window = keys.optional_size("sliding_window") if keys.flag("use_sliding_window") else None
    whole = count if window is None else min(count, keys.size("max_window_layers", 28, least=0))
    kinds = keys.each("layer_types", (SLIDING, FULL), (FULL,) * whole + (SLIDING,) * (count - whole))
    return [window if kind == SLIDING else None for kind in kinds]


_LAYER = "model.layers.{}."
NAMES = {
    "embed": "model.embed_tokens",
    "attention.norm": _LAYER + "input_layernorm",
    "attention.q": _LAYER + "self_attn.q_proj",
    "attention.k": _LAYER + "self_attn.k_proj",
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
    architecture="qwen2",
    tensors={
        "token_embd": NAMES["embed"],
        "blk.{}.attn_norm": NAMES["attention.norm"],
        "blk.{}.attn_q": NAMES["attention.q"],
        "blk.{}.attn_k": NAMES["attention.k"],
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
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    },
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    },
    finish=_finish,
)


def build(config: Config, **choices: Any) -> Model:
    """See `models.spec.Build`."""
    from models.dense.build import build_dense  # brings JAX, which who only reads configs does without

    return build_dense(read(config), NAMES, **choices)


FAMILY = Family(architectures=(NAME,), model_types=("qwen2",), read=read, build=build, gguf=(GGUF,))
