"""The gpt-oss family: 20B and 120B; must not know files, pages or jax.

Every other layer sees a window. Each query head has a sink, all maps have biases, rotary is YaRN's, and the MLP is a mixture
of 32 or 128 experts, stored in MXFP4, whose gates are clamped. https://arxiv.org/abs/2508.10925.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import EXPERTS, GGUF_KEYS, LAYER, SINKS, USUAL, gguf_tensors, without
from models.dense.record import FULL, OAI_SLOPE, SLIDING, Activation, Dense, Experts, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "GptOssForCausalLM"
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Where a config says nothing of it."""


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    said = config.get("rope_parameters") is None and config.get("rope_scaling") is None
    keys = Keys({**config, "rope_scaling": _YARN} if said else config, NAME)
    heads, head_dim = keys.size("num_attention_heads", 64), keys.size("head_dim", 64)
    rotary, bias = read_rotary(keys, head_dim, theta=150000.0, whole=True), keys.flag("attention_bias", default=True)
    window, count = keys.size("sliding_window", 128), keys.size("num_hidden_layers", 36, most=MOST_LAYERS)
    kinds = keys.each("layer_types", (SLIDING, FULL), [FULL if n % 2 else SLIDING for n in range(count)])
    if keys.number("swiglu_alpha", OAI_SLOPE) != OAI_SLOPE:
        keys.refuse(f"swiglu_alpha is {keys.get('swiglu_alpha')}, must be {OAI_SLOPE}")
    width = keys.size("intermediate_size", 2880)
    experts = Experts(
        count=keys.size("num_local_experts", keys.size("num_experts", 128)),
        active=keys.size("num_experts_per_tok", keys.size("experts_per_token", 4)),
        width=width,
        bias=True,
        router_bias=True,
    )
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 201088),
        hidden_size=keys.size("hidden_size", 2880),
        intermediate_size=width,
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", 8),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=tuple(Layer(rotary, window if kind == SLIDING else None, None, True, experts) for kind in kinds),
        activation=Activation("swiglu_oai", keys.number("swiglu_limit", 7.0)),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
    )
    return checked(keys, found)


NAMES = {
    **without(USUAL, "mlp.gate", "mlp.up", "mlp.down"),
    **SINKS,
    **EXPERTS,
    "experts.router": LAYER + "mlp.router",
    "oss.gate_up": LAYER + "mlp.experts.gate_up_proj",
    "oss.down": LAYER + "mlp.experts.down_proj",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF has no word for what of YaRN all of the family do alike."""
    scaling = config["rope_scaling"] and {**_YARN, **config["rope_scaling"]}
    return finish_as(NAME)({**config, "rope_scaling": scaling})


GGUF = GgufTable(
    architecture="gpt-oss",
    tensors=gguf_tensors(without(NAMES, "mlp.norm")) | {"blk.{}.post_attention_norm": NAMES["mlp.norm"]},
    required={
        **{key: own for key, own in GGUF_KEYS.items() if key != "feed_forward_length"},
        "expert_feed_forward_length": "intermediate_size",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
    },
    optional={"attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"},
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("gpt_oss",), read=read, names=NAMES, gguf=GGUF)
