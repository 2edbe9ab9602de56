"""The Gemma 4 family, its text: E2B, E4B, 12B, 31B and 26B-A4B; must not know files, pages or jax.

Layers that see a window, and full ones with wider heads of their own, some of whose pairs do not turn. Queries, keys and values
are normed; in the large sizes a full layer's value is its key. The small ones have embeddings for every layer, and their
last layers share keys and values, with wider MLPs in E2B. 26B-A4B has experts beside each MLP, with norms of their own.
https://ai.google.dev/gemma/docs/core/model_card_4.
"""

from collections.abc import Mapping
from typing import Any

from models.config import MOST_LAYERS, Keys, architectures
from models.dense.family import checked, dense_family
from models.dense.names import (
    BESIDE,
    EXPERTS,
    GGUF_KEYS,
    LAYER,
    PER_LAYER,
    QK_NORMS,
    SANDWICH_NORMS,
    SCALAR,
    USUAL,
    gguf_tensors,
    without,
)
from models.dense.record import ACTIVATIONS, FULL, SLIDING, Dense, Experts, Heads, Layer, PerLayer
from models.gguf import GgufTable
from models.rope import PROPORTIONAL, Rotary, read_rotary
from models.spec import Config

NAME, UNIFIED = "Gemma4ForCausalLM", "Gemma4UnifiedForCausalLM"
_UNIFIED_TEXT = "gemma4_unified_text"
_ROTARY: Mapping[str, Any] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": PROPORTIONAL, "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
"""Where a config has no rope_parameters."""
_USUAL_OF_UNIFIED = {"hidden_size_per_layer_input": 0, "sliding_window": 1024, "max_position_embeddings": 262144}


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    unified = UNIFIED in architectures(config) or config.get("model_type") == _UNIFIED_TEXT
    usual = {"rope_parameters": _ROTARY} | (_USUAL_OF_UNIFIED if unified else {})
    said = {key: value for key, value in config.items() if value is not None}
    keys = Keys(usual | said, UNIFIED if unified else NAME)
    _refuse(keys)
    hidden, heads = keys.size("hidden_size", 2304), keys.size("num_attention_heads", 8)
    kv_heads, head_dim = keys.size("num_key_value_heads", 4), keys.size("head_dim", 256)
    bias = keys.flag("attention_bias")
    found = Dense(
        architecture=keys.subject,
        vocab_size=keys.size("vocab_size", 262144),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 9216),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=_stack(keys, heads, (kv_heads, head_dim)),
        tied=keys.flag("tie_word_embeddings", default=True),
        activation=keys.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        qkv_bias=bias,
        out_bias=bias,
        post_norms=True,
        qk_norm=True,
        scale=1.0,
        embedding_scale=hidden**0.5,
        logit_cap=keys.optional_number("final_logit_softcapping"),
        per_layer=_per_layer(keys),
        scalars=True,
    )
    return checked(keys, found)


def _refuse(keys: Keys) -> None:
    if keys.get("use_bidirectional_attention") not in (None, "vision"):
        keys.refuse(
            "use_bidirectional_attention must be null or 'vision': only models that write from left to right are served"
        )


def _per_layer(keys: Keys) -> PerLayer | None:
    width = keys.size("hidden_size_per_layer_input", 256, least=0)
    vocab = keys.size("vocab_size_per_layer_input", 262144) if width else 0
    if width and vocab < keys.size("vocab_size", 262144):
        keys.refuse("vocab_size_per_layer_input must be at least vocab_size")
    return PerLayer(width, vocab) if width else None


def _stack(keys: Keys, heads: int, sizes: tuple[int, int]) -> tuple[Layer, ...]:
    count, window = keys.size("num_hidden_layers", 30, most=MOST_LAYERS), keys.size("sliding_window", 512)
    usual = [FULL if n % 6 == 0 else SLIDING for n in range(1, count + 1)]
    kinds = [*keys.each("layer_types", (SLIDING, FULL), usual)[:-1], FULL]
    own = [_heads(keys, kind, number, sizes) for number, kind in enumerate(kinds)]
    for kv_heads in {found.kv_heads for found in own}:
        if heads % kv_heads:
            keys.refuse(f"{heads} attention heads do not divide among {kv_heads} key-value heads")
    alone = count - keys.size("num_kv_shared_layers", 0, least=0, most=count)
    wide = 2 * keys.size("intermediate_size", 9216) if keys.flag("use_double_wide_mlp") else None
    layers = []
    for number, (kind, found) in enumerate(zip(kinds, own, strict=True)):
        source = None if number < alone else _source(keys, kinds[:alone], kind)
        if source is not None and (own[source].kv_heads, own[source].head_dim) != (found.kv_heads, found.head_dim):
            keys.refuse(f"layer {number} shares keys and values of other sizes")
        made = Heads(found.kv_heads, found.head_dim, found.key_is_value, source)
        reach, width = window if kind == SLIDING else None, None if number < alone else wide
        experts = _experts(keys, width)
        layers.append(Layer(_rotary(keys, kind, found.head_dim), reach, heads=made, width=width, experts=experts))
    return tuple(layers)


def _experts(keys: Keys, width: int | None) -> Experts | None:
    """Beside an MLP of this width, None: of the usual one."""
    if not keys.flag("enable_moe_block"):
        return None
    return Experts(
        count=keys.size("num_experts"),
        active=keys.size("top_k_experts"),
        width=keys.size("moe_intermediate_size"),
        shared=width or keys.size("intermediate_size", 9216),
        beside=True,
    )


def _source(keys: Keys, kinds: list[str], kind: str) -> int | None:
    """The last layer of a kind among those that have keys and values of their own."""
    if kind not in kinds:
        keys.refuse(f"num_kv_shared_layers leaves no {kind} whose keys and values could be shared")
        return None
    return len(kinds) - 1 - kinds[::-1].index(kind)


def _heads(keys: Keys, kind: str, number: int, sizes: tuple[int, int]) -> Heads:
    """Transformers writes what is a layer's own under its number; released configs say it of all full layers."""
    (kv_heads, head_dim), alike = sizes, keys.flag("attention_k_eq_v") and kind == FULL
    if keys.get("per_layer_config") is not None:
        said = Keys(keys.section("per_layer_config"), keys.subject)
        section = Keys(said.section(str(number)), keys.subject)
        found = Heads(section.size("num_key_value_heads", kv_heads), section.size("head_dim", head_dim), alike)
        keys.misfits += said.misfits + section.misfits
        return found
    if kind == FULL:
        kv_heads = keys.size("num_global_key_value_heads", kv_heads) if alike else kv_heads
        head_dim = keys.size("global_head_dim", 512)
    return Heads(kv_heads, head_dim, alike)


def _rotary(keys: Keys, kind: str, head_dim: int) -> Rotary:
    return read_rotary(keys, head_dim, kind=kind, whole=True)


NAMES = {
    **USUAL,
    **QK_NORMS,
    **SANDWICH_NORMS,
    **PER_LAYER,
    **SCALAR,
    **{what.replace("mlp", "shared"): USUAL[what] for what in ("mlp.gate", "mlp.up", "mlp.down")},
    **BESIDE,
    **{what: stem.replace(".mlp.", ".") for what, stem in EXPERTS.items()},
    "experts.router": LAYER + "router.proj",
    "fused.gate_up": LAYER + "experts.gate_up_proj",
    "fused.down": LAYER + "experts.down_proj",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """The file says which of a full layer's pairs turn by divisors, huge ones for those that do not, and which layers are
    which by a list. Where kv heads are a list, full layers have their own, and their values are their keys.
    """
    left_out = {"rope_scaling", "partial_rotary_factor", "rope_theta", "rope_theta_sliding", "pattern", "kv_heads"}
    said = {key: value for key, value in config.items() if key not in left_out}
    factors = (config.get("rope_scaling") or {}).get("factors", ())
    turning = sum(factor < _HUGE for factor in factors) / max(len(factors), 1)
    rotary = {kind: dict(_ROTARY[kind]) for kind in _ROTARY}
    rotary[FULL] |= {"rope_theta": config.get("rope_theta"), "partial_rotary_factor": turning or None}
    rotary[SLIDING]["rope_theta"] = config.get("rope_theta_sliding")
    kinds = [SLIDING if slides else FULL for slides in config["pattern"]]
    kv_heads = config["kv_heads"]
    if isinstance(kv_heads, list):
        by_kind = dict(zip(kinds, kv_heads, strict=False))
        said |= {"num_global_key_value_heads": by_kind.get(FULL), "attention_k_eq_v": True}
        kv_heads = by_kind.get(SLIDING)
    widths = said.pop("widths")
    return said | {
        "num_key_value_heads": kv_heads,
        "intermediate_size": widths[0] if isinstance(widths, list) else widths,
        "use_double_wide_mlp": isinstance(widths, list) and len(set(widths)) > 1,
        "enable_moe_block": bool(said.get("num_experts")),
        "layer_types": kinds,
        "rope_parameters": rotary,
        "vocab_size_per_layer_input": config["vocab_size"],
        "architectures": [NAME],
    }


_HUGE = 1e29

GGUF = GgufTable(
    architecture="gemma4",
    tensors=gguf_tensors(without(NAMES, "shared.gate", "shared.up", "shared.down"))
    | {"blk.{}.ffn_gate_up_exps.weight": NAMES["fused.gate_up"], "blk.{}.ffn_down_exps.weight": NAMES["fused.down"]},
    required={
        **{key: own for key, own in GGUF_KEYS.items() if key != "feed_forward_length"},
        "attention.key_length": "global_head_dim",
        "attention.key_length_swa": "head_dim",
        "attention.sliding_window": "sliding_window",
    },
    optional={
        "rope.freq_base": "rope_theta",
        "rope.freq_base_swa": "rope_theta_sliding",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    other={
        "attention.head_count_kv": "kv_heads",
        "attention.sliding_window_pattern": "pattern",
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
        "feed_forward_length": "widths",
        "expert_count": "num_experts",
        "expert_used_count": "top_k_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME, UNIFIED),
    model_types=("gemma4_text", _UNIFIED_TEXT),
    read=read,
    names=NAMES,
    gguf=GGUF,
)
