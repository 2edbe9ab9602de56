"""The Cohere family: Command R7B, Command A and Aya of the second kind, Command R and Aya of the first; no files, pages or jax.

Attention and MLP begin side by side with one norm of the stream, from which the mean is taken first; pairs of neighbours turn.
Of the second kind three of four layers see a window, and the fourth, which sees everything, does not turn; of the first all do
both. The norms of heads of Command R+ are refused. https://arxiv.org/abs/2504.00698.
"""

from typing import Any

from attrs import evolve

from models.config import MOST_LAYERS, Keys, architectures
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, LAYER, USUAL, gguf_tensors, without
from models.dense.record import FULL, SILU, SLIDING, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

FIRST, SECOND = "CohereForCausalLM", "Cohere2ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    usual = FIRST if config.get("model_type") == "cohere" else SECOND
    name = next((name for name in architectures(config) if name in (FIRST, SECOND)), usual)
    keys = Keys(config, name)
    hidden, heads = keys.size("hidden_size", 8192), keys.size("num_attention_heads", 64)
    bias, count = keys.flag("attention_bias"), keys.size("num_hidden_layers", 40, most=MOST_LAYERS)
    if keys.flag("use_qk_norm"):
        keys.refuse("use_qk_norm must be false: norms of heads that take the mean from them are not served")
    turning = Layer(read_rotary(keys, hidden // heads, whole=True, interleaved=True))
    found = Dense(
        architecture=name,
        vocab_size=keys.size("vocab_size", 256000),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 22528),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=hidden // heads,
        max_positions=keys.size("max_position_embeddings", 8192),
        epsilon=keys.number("layer_norm_eps", 1e-5),
        stack=(turning,) * count if name == FIRST else _windowed(keys, turning, count),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings", default=True),
        qkv_bias=bias,
        out_bias=bias,
        centred=True,
        parallel=True,
        logit_scale=keys.number("logit_scale", 0.0625),
    )
    return checked(keys, found)


def _windowed(keys: Keys, turning: Layer, count: int) -> tuple[Layer, ...]:
    window, every = keys.size("sliding_window", 4096), keys.size("sliding_window_pattern", 4)
    usual = [SLIDING if n % every else FULL for n in range(1, count + 1)]
    kinds = keys.each("layer_types", (SLIDING, FULL), usual)
    return tuple(evolve(turning, window=window) if kind == SLIDING else Layer(None) for kind in kinds)


NAMES = {**USUAL, "mlp.norm": LAYER + "input_layernorm"}
"""One norm for both."""


def _table(architecture: str, name: str, **more: Any) -> GgufTable:
    optional = {"attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"}
    return GgufTable(
        architecture=architecture,
        tensors=gguf_tensors(without(NAMES, "mlp.norm")),
        required={
            **{key: own for key, own in GGUF_KEYS.items() if key != "attention.layer_norm_rms_epsilon"},
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "logit_scale": "logit_scale",
        },
        optional={**optional, **more},
        flags={"attention_bias": "blk.0.attn_q.bias", "use_qk_norm": "blk.0.attn_q_norm.weight"},
        finish=finish_as(name),
    )


FAMILY = evolve(
    dense_family(architectures=(FIRST, SECOND), model_types=("cohere", "cohere2"), read=read, names=NAMES),
    gguf=(
        _table("command-r", FIRST),
        _table("cohere2", SECOND, **{"attention.sliding_window": "sliding_window"}),
    ),
)
