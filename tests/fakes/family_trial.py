"""A made-up family in one file, as a real one would be: all that dense decoders may differ in, and that Llama does not.

Registered by `registry.FAMILIES.append("tests.fakes.family_trial")`.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.record import ACTIVATIONS, Activation, Dense, Layer
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config, Family, Model

NAME = "TrialForCausalLM"
SLIDING, FULL, STILL = "sliding_attention", "full_attention", "still_attention"
THETA = {SLIDING: 10000.0, FULL: 1000000.0}


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads, kv_heads = keys.size("num_attention_heads", 4), keys.size("num_key_value_heads", 2)
    head_dim = keys.size("head_dim", 16)
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    kinds = keys.each("layer_types", (SLIDING, FULL, STILL), (FULL,) * count)
    activation = keys.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    window, cap = keys.size("sliding_window", 32), keys.optional_number("attn_logit_softcapping")
    sinks, bias = keys.flag("attention_sinks"), keys.flag("attention_bias")
    if heads % kv_heads:
        keys.refuse(f"{heads} attention heads do not divide among {kv_heads} key-value heads")
    rotary = {kind: read_rotary(keys, head_dim, kind=kind, theta=theta) for kind, theta in THETA.items()}
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 512),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(
            Layer(rotary.get(kind), window if kind == SLIDING else None, cap, sinks and kind != FULL) for kind in kinds
        ),
        tied=keys.flag("tie_word_embeddings", default=True),
        activation=Activation(activation.kind, keys.optional_number("activation_limit")),
        qkv_bias=bias,
        mlp_bias=keys.flag("mlp_bias"),
        pre_norms=keys.choice("norms", {"both": True, "after": False}, "both"),
        post_norms=True,
        norm_offset=1.0,
        qk_norm=True,
        scale=keys.number("query_pre_attn_scalar", head_dim) ** -0.5,
        embedding_scale=keys.size("hidden_size") ** 0.5,
        logit_cap=keys.optional_number("final_logit_softcapping"),
    )
    keys.check()
    return found


_LAYER = "model.layers.{}."
_PRE = {"attention.norm": _LAYER + "input_layernorm", "mlp.norm": _LAYER + "pre_feedforward_layernorm"}
_SINKS = {"attention.sinks": _LAYER + "self_attn.sinks"}
_NORMS = {
    "attention.q_norm": _LAYER + "self_attn.q_norm",
    "attention.k_norm": _LAYER + "self_attn.k_norm",
    "attention.post_norm": _LAYER + "post_attention_layernorm",
    "mlp.post_norm": _LAYER + "post_feedforward_layernorm",
    "norm": "model.norm",
}
_MAPS = {
    "embed": "model.embed_tokens",
    "head": "lm_head",
    "attention.q": _LAYER + "self_attn.q_proj",
    "attention.k": _LAYER + "self_attn.k_proj",
    "attention.v": _LAYER + "self_attn.v_proj",
    "attention.out": _LAYER + "self_attn.o_proj",
    "mlp.gate": _LAYER + "mlp.gate_proj",
    "mlp.up": _LAYER + "mlp.up_proj",
    "mlp.down": _LAYER + "mlp.down_proj",
}


def names(c: Dense) -> dict[str, str]:
    """Of the tensors that this one has."""
    sinks = any(layer.sinks for layer in c.stack)
    return {**_MAPS, **_NORMS, **(_PRE if c.pre_norms else {}), **(_SINKS if sinks else {})}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    kinds = {0: FULL, 1: SLIDING, 2: STILL}
    bases = {FULL: config.pop("full_base"), SLIDING: config.pop("sliding_base")}
    return config | {
        "architectures": [NAME],
        "layer_types": [kinds.get(kind) for kind in config.pop("pattern")],
        "rope_parameters": {kind: {"rope_theta": base} for kind, base in bases.items()},
    }


GGUF = GgufTable(
    architecture="trial",
    tensors={
        "token_embd": _MAPS["embed"],
        "output": _MAPS["head"],
        "output_norm": _NORMS["norm"],
        "blk.{}.attn_norm": _PRE["attention.norm"],
        "blk.{}.attn_q": _MAPS["attention.q"],
        "blk.{}.attn_q_norm": _NORMS["attention.q_norm"],
        "blk.{}.attn_k": _MAPS["attention.k"],
        "blk.{}.attn_k_norm": _NORMS["attention.k_norm"],
        "blk.{}.attn_v": _MAPS["attention.v"],
        "blk.{}.attn_output": _MAPS["attention.out"],
        "blk.{}.attn_sinks.weight": _SINKS["attention.sinks"],
        "blk.{}.post_attention_norm": _NORMS["attention.post_norm"],
        "blk.{}.ffn_norm": _PRE["mlp.norm"],
        "blk.{}.ffn_gate": _MAPS["mlp.gate"],
        "blk.{}.ffn_up": _MAPS["mlp.up"],
        "blk.{}.ffn_down": _MAPS["mlp.down"],
        "blk.{}.post_ffw_norm": _NORMS["mlp.post_norm"],
    },
    required={
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
        "rope.freq_base": "full_base",
        "rope.freq_base_swa": "sliding_base",
    },
    optional={
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
        "activation_limit": "activation_limit",
        "query_pre_attn_scalar": "query_pre_attn_scalar",
    },
    other={"attention.sliding_window_pattern": "pattern"},
    flags={"attention_sinks": "blk.0.attn_sinks.weight", "attention_bias": "blk.0.attn_q.bias"},
    plus_one=(*_NORMS.values(), *_PRE.values()),
    finish=_finish,
)


def build(config: Config, **choices: Any) -> Model:
    """See `models.spec.Build`."""
    from models.dense.build import build_dense

    c = read(config)
    return build_dense(c, names(c), **choices)


FAMILY = Family(architectures=(NAME,), model_types=("trial_text",), read=read, build=build, gguf=(GGUF,))
