"""A made-up family in one file, as a real one would be: all that dense decoders may differ in, and that Llama does not.

Registered by `registry.FAMILIES.append("tests.fakes.family_trial")`.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, QK_NORMS, SANDWICH_NORMS, SINKS, USUAL, gguf_tensors
from models.dense.record import ACTIVATIONS, FULL, SLIDING, Activation, Dense, Layer
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config

NAME = "TrialForCausalLM"
STILL = "still_attention"
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
    return checked(keys, found)


NAMES = {**USUAL, **QK_NORMS, **SANDWICH_NORMS, **SINKS}


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
    tensors=gguf_tensors(NAMES),
    required={
        **GGUF_KEYS,
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
    plus_one=tuple(stem for what, stem in NAMES.items() if what.endswith("norm")),
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("trial_text",), read=read, names=NAMES, gguf=GGUF)
