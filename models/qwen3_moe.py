"""The Qwen3 family with experts: Qwen3-30B-A3B and 235B-A22B, their Instruct, Thinking and Coder; no files, pages or jax.

A Qwen3 whose MLP is 128 small ones, of which a token goes through 8. https://arxiv.org/abs/2505.09388.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import EXPERTS, GGUF_KEYS, QK_NORMS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Experts, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Qwen3MoeForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads = keys.size("num_attention_heads")
    kv_heads, head_dim = keys.size("num_key_value_heads", heads), keys.size("head_dim", 128)
    rotary, bias = read_rotary(keys, head_dim, whole=True), keys.flag("attention_bias")
    window = keys.optional_size("sliding_window") if keys.flag("use_sliding_window") else None
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size", 6144),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 32768),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(Layer(rotary, window, experts=experts) for experts in sparse_layers(keys, _experts(keys))),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
    )
    return checked(keys, found)


def _experts(keys: Keys) -> Experts:
    return Experts(
        count=keys.size("num_experts", keys.size("num_local_experts", 128)),
        active=keys.size("num_experts_per_tok", 8),
        width=keys.size("moe_intermediate_size", 768),
        renormalised=keys.flag("norm_topk_prob"),
    )


def sparse_layers(keys: Keys, experts: Experts) -> list[Experts | None]:
    """The experts of each layer, None where it has one MLP: those that mlp_only_layers names, and all but every
    decoder_sparse_step-th.
    """
    count, step = keys.size("num_hidden_layers", most=MOST_LAYERS), keys.size("decoder_sparse_step", 1)
    dense = keys.places("mlp_only_layers")
    return [experts if n not in dense and (n + 1) % step == 0 else None for n in range(count)]


NAMES = {**USUAL, **QK_NORMS, **EXPERTS}
EXPERT_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF says nothing of the shares, which all of the family divide by their sum."""
    return finish_as(NAME)({"norm_topk_prob": True, **config})


GGUF = GgufTable(
    architecture="qwen3moe",
    tensors=gguf_tensors(NAMES),
    required={**GGUF_KEYS, **EXPERT_KEYS, "attention.key_length": "head_dim"},
    optional={"attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"},
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("qwen3_moe",), read=read, names=NAMES, gguf=GGUF)
