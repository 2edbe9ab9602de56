"""The Llama 4 family, its text: Scout and Maverick, 17B-16E and 17B-128E; must not know files, pages or jax.

A Llama of whose layers some or all have experts: one of them, which gets the token multiplied by the sigmoid of its logit,
beside an MLP that all tokens share. Three of four layers turn neighbours, see the tokens of their own chunk of 8192, and in
Scout norm queries and keys; the fourth sees everything, does not turn, and sharpens queries the further they are.
https://ai.meta.com/blog/llama-4-multimodal-intelligence/, https://arxiv.org/abs/2501.19399 (sharpening by position).
"""

from typing import Any

from attrs import evolve

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import EXPERTS, GGUF_KEYS, LAYER, USUAL, gguf_tensors
from models.dense.record import FULL, SILU, Dense, Experts, Layer, Sharpening
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Llama4ForCausalLM"
CHUNKED = "chunked_attention"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads, bias = keys.size("num_attention_heads", 40), keys.flag("attention_bias")
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 202048),
        hidden_size=keys.size("hidden_size", 5120),
        intermediate_size=keys.size("intermediate_size_mlp", 16384),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", 8),
        head_dim=keys.size("head_dim", 128),
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=_stack(keys),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
    )
    return checked(keys, found)


def _stack(keys: Keys) -> tuple[Layer, ...]:
    """Where no_rope_layers has a 1 a layer turns, and sees a chunk, where layer_types does not say otherwise."""
    count, every = keys.size("num_hidden_layers", 48, most=MOST_LAYERS), keys.size("no_rope_layer_interval", 4)
    usual = [n % every != 0 for n in range(1, count + 1)]
    turns = usual if keys.get("no_rope_layers") == [] else list(keys.bits("no_rope_layers", usual))
    chunk = keys.optional_size("attention_chunk_size") if "attention_chunk_size" in keys.config else 8192
    kinds = keys.each("layer_types", (CHUNKED, FULL), [CHUNKED if turn and chunk else FULL for turn in turns])
    if CHUNKED in kinds and chunk is None:
        keys.refuse("layer_types has chunked_attention, and attention_chunk_size says no chunk")
    rotary = read_rotary(keys, keys.size("head_dim", 128), theta=500000.0, whole=True, interleaved=True)
    turning = Layer(rotary, bare_norms=keys.flag("use_qk_norm", default=True))
    still = Layer(None, sharpening=_sharpening(keys))
    layers = [turning if turn else still for turn in turns]
    return tuple(
        evolve(layer, window=chunk if kind == CHUNKED else None, aligned=kind == CHUNKED, experts=experts)
        for layer, kind, experts in zip(layers, kinds, _experts(keys, count), strict=True)
    )


def _experts(keys: Keys, count: int) -> list[Experts | None]:
    """Those of each layer: of the layers that moe_layers names, or of every interleave_moe_layer_step-th."""
    width, step = keys.size("intermediate_size", 8192), keys.size("interleave_moe_layer_step", 1)
    experts = Experts(
        count=keys.size("num_local_experts", 16),
        active=keys.size("num_experts_per_tok", 1),
        width=width,
        scoring="sigmoid",
        renormalised=False,
        shared=width,
        share_inputs=True,
    )
    named = None if keys.get("moe_layers") is None else keys.places("moe_layers")
    sparse = range(step - 1, count, step) if named is None else named
    return [experts if n in sparse else None for n in range(count)]


def _sharpening(keys: Keys) -> Sharpening | None:
    """Files of the first weeks have a number of layers in place of true."""
    key = "attn_temperature_tuning"
    tuned = keys.size(key, least=0) if type(keys.get(key)) is int else keys.flag(key, default=True)
    beta, original = keys.number("attn_scale", 0.1), keys.size("floor_scale", 8192)
    return Sharpening(beta, original, ahead=1) if tuned else None


_MLP = LAYER + "feed_forward."
NAMES = {
    **{what: stem.replace(".mlp.", ".feed_forward.") for what, stem in {**USUAL, **EXPERTS}.items()},
    "experts.router": _MLP + "router",
    "turned.gate_up": _MLP + "experts.gate_up_proj",
    "turned.down": _MLP + "experts.down_proj",
    "shared.gate": _MLP + "shared_expert.gate_proj",
    "shared.up": _MLP + "shared_expert.up_proj",
    "shared.down": _MLP + "shared_expert.down_proj",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF says nothing of norms, which Maverick alone does without; llama.cpp tells it by its number of experts."""
    return finish_as(NAME)({"use_qk_norm": config["num_local_experts"] != 128, **config})


GGUF = GgufTable(
    architecture="llama4",
    tensors=gguf_tensors(NAMES),
    required={
        **GGUF_KEYS,
        "feed_forward_length": "intermediate_size_mlp",
        "attention.key_length": "head_dim",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
        "interleave_moe_layer_step": "interleave_moe_layer_step",
    },
    optional={"attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"},
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("llama4_text",), read=read, names=NAMES, gguf=GGUF)
