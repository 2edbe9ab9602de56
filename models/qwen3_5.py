"""The Qwen3.5 family, dense: Qwen3.5, 3.6 and 3.8, the text of what also sees; must not know files, pages or jax.

0.8B to 27B. A Qwen3 three of whose four layers mix by the gated delta rule (https://arxiv.org/abs/2412.06464) in attention's
place. What attention gathers is gated, a quarter of each head turns, and norms multiply by 1 + w. Of a picture's three kinds
of position a text has but one, so its rotary is the plain one. What drafts tokens (mtp) is read for guesses.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import DELTA, GGUF_KEYS, NEXTN, NEXTN_NORMS, QK_NORMS, USUAL, gguf_tensors, without
from models.dense.record import FULL, LINEAR, SILU, Dense, GatedDelta, Layer
from models.gguf import Changed, GgufTable, Order
from models.rope import read_rotary
from models.spec import Config

NAME = "Qwen3_5ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads = keys.size("num_attention_heads")
    head_dim = keys.size("head_dim", 256)
    bias = keys.flag("attention_bias")
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 32768),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=hybrid_stack(keys, head_dim),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        norm_offset=1.0,
        output_gate=True,
    )
    return checked(keys, found)


def hybrid_stack(keys: Keys, head_dim: int) -> tuple[Layer, ...]:
    """As layer_types says, or attention in every full_attention_interval-th layer."""
    count, every = keys.size("num_hidden_layers", most=MOST_LAYERS), keys.size("full_attention_interval", 4)
    usual = [LINEAR if (n + 1) % every else FULL for n in range(count)]
    kinds = keys.each("layer_types", (LINEAR, FULL), usual)
    attention = Layer(read_rotary(keys, head_dim, share=0.25))
    delta = Layer(None, recurrence=gated_delta(keys))
    return tuple(attention if kind == FULL else delta for kind in kinds)


def gated_delta(keys: Keys) -> GatedDelta:
    """What a config says of its gated delta rule."""
    found = GatedDelta(
        keys.size("linear_num_key_heads", 16),
        keys.size("linear_num_value_heads", 32),
        keys.size("linear_key_head_dim", 128),
        keys.size("linear_value_head_dim", 128),
        keys.size("linear_conv_kernel_dim", 4, least=2),
    )
    if found.value_heads % found.key_heads:
        keys.refuse(f"{found.value_heads} linear value heads do not divide among {found.key_heads} linear key heads")
    return found


MOST_ROWS = 2**24
"""Of a matrix; no model's is near it."""
NAMES = {**USUAL, **QK_NORMS, **DELTA}

HYBRID_KEYS = {
    **GGUF_KEYS,
    "attention.key_length": "head_dim",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
    "ssm.inner_size": "linear_inner_size",
}
HYBRID_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "rope.freq_base": "rope_theta",
    "full_attention_interval": "full_attention_interval",
}
HYBRID_OTHER = {"attention.recurrent_layers": "recurrent_layers", "nextn_predict_layers": "nextn_predict_layers"}
_NORMS = ("attention.norm", "attention.q_norm", "attention.k_norm", "mlp.norm", "norm")
PLUS_ONE = (*(NAMES[what] for what in _NORMS), *NEXTN_NORMS)


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    return finish_hybrid(NAME, config)


def finish_hybrid(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """GGUF counts the layers that draft tokens among all, and says which layers recur by one boolean for each."""
    kinds, ahead = config.pop("recurrent_layers", None), config.pop("nextn_predict_layers", 0)
    inner, heads = config.pop("linear_inner_size"), config["linear_num_value_heads"]
    layers = config["num_hidden_layers"] - (ahead if isinstance(ahead, int) else 0)
    if isinstance(kinds, list) and isinstance(layers, int):
        config["layer_types"] = [LINEAR if kind else FULL for kind in kinds[:layers]]
    whole = {"num_key_value_heads": config["num_attention_heads"], "linear_value_head_dim": inner // heads}
    return {**whole, **config, "num_hidden_layers": layers, "architectures": [name]}


def drafting(found: Dense) -> tuple[str, ...]:
    """The tensors of what drafts tokens, in either container, and of what sees."""
    last = len(found.stack)
    return r"mtp\..*", r"model\.visual\..*", rf"model\.layers\.{last}\..*", rf"blk\.{last}\..*"


def tiled(heads: int, width: int, key_heads: int) -> Order:
    """Where the rows of each value head stand in a file. There the first values of all key heads come first, here all those
    of one key head: https://github.com/ggml-org/llama.cpp/pull/19468."""
    if not isinstance(heads * width, int) or heads * width > MOST_ROWS:
        return np.arange(0)  # what reads the config says what is wrong
    own = np.arange(heads)
    group = max(heads // key_heads, 1)
    place = own % group * key_heads + own // group
    return (place[:, None] * width + np.arange(width)).ravel()


def _values(config: Mapping[str, Any]) -> Order:
    return tiled(config["linear_num_value_heads"], config["linear_value_head_dim"], config["linear_num_key_heads"])


def _heads(config: Mapping[str, Any]) -> Order:
    return tiled(config["linear_num_value_heads"], 1, config["linear_num_key_heads"])


def _channels(config: Mapping[str, Any]) -> Order:
    """Queries and keys stand where they are."""
    before = 2 * config["linear_num_key_heads"] * config["linear_key_head_dim"]
    return np.concatenate([np.arange(before), before + _values(config)])


GGUF = GgufTable(
    architecture="qwen35",
    tensors=gguf_tensors(without(NAMES, "mlp.norm")) | {"blk.{}.post_attention_norm": NAMES["mlp.norm"]} | NEXTN,
    required=HYBRID_KEYS,
    optional=HYBRID_OPTIONAL,
    other=HYBRID_OTHER,
    plus_one=PLUS_ONE,
    changed={
        NAMES["delta.qkv"] + ".weight": Changed(rows=_channels),
        NAMES["delta.z"] + ".weight": Changed(rows=_values),
        NAMES["delta.beta"] + ".weight": Changed(rows=_heads),
        NAMES["delta.a"] + ".weight": Changed(rows=_heads),
        NAMES["delta.taps"] + ".weight": Changed(rows=_channels, one=1),
        NAMES["delta.rate"]: Changed(rows=_heads, values=lambda rate: np.log(-rate)),
        NAMES["delta.shift"]: Changed(rows=_heads),
        NAMES["delta.out"] + ".weight": Changed(columns=_values),
    },
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME,),
    model_types=("qwen3_5_text", "qwen3_5"),
    read=read,
    names=NAMES,
    gguf=GGUF,
    ignored=drafting,
    drafts=True,
)
