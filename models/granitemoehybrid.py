"""The Granite 4 family: Granite 4.0 H with Mamba 2, with and without experts, and those of attention alone; no files or jax.

H-Micro, H-Tiny and H-Small, Nano of 350M and 1B, and Micro. A Granite with its four multipliers, most of whose layers mix by
Mamba 2 (https://arxiv.org/abs/2405.21060) in attention's place; then those that attend do not turn by position. Where there are
experts, all tokens share one MLP beside them. https://www.ibm.com/granite/docs/models/granite.
"""

from typing import Any

import numpy as np
from attrs import evolve

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import EXPERTS, GGUF_KEYS, LAYER, MAMBA, USUAL, Names, gguf_tensors, without
from models.dense.record import FULL, LINEAR, SILU, Dense, Experts, Layer, Mamba2
from models.gguf import Changed, GgufTable
from models.rope import read_rotary
from models.spec import Config

NAME = "GraniteMoeHybridForCausalLM"
KINDS = {"mamba": LINEAR, "attention": FULL, LINEAR: LINEAR, FULL: FULL}
"""Of layers, as older and newer files call them."""


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit. Multipliers: see `models.granite`."""
    return read_as(Keys(config, NAME), usual=LINEAR)


def read_as(keys: Keys, *, usual: str) -> Dense:
    """The same of a family whose layers are of this kind where the config names none."""
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    head_dim = keys.optional_size("head_dim") or hidden // heads
    bias, part = keys.flag("attention_bias"), keys.number("residual_multiplier", 1.0)
    width, shared = keys.size("intermediate_size"), keys.size("shared_intermediate_size", 1024, least=0)
    experts = _experts(keys, width, shared)
    if shared == 0 and experts is None:
        keys.refuse("shared_intermediate_size must not be 0 where there are no experts")
    found = Dense(
        architecture=keys.subject,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=shared,
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 2048),
        epsilon=keys.number("rms_norm_eps", 1e-6) / part**2,
        stack=tuple(evolve(layer, experts=experts) for layer in _stack(keys, hidden, head_dim, usual)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        scale=keys.number("attention_multiplier", 1.0),
        embedding_scale=keys.number("embedding_multiplier", 1.0) / part,
        logit_scale=1 / keys.number("logits_scaling", 1.0),
    )
    return checked(keys, found)


def _experts(keys: Keys, width: int, shared: int) -> Experts | None:
    count = keys.size("num_local_experts", 8, least=0)
    if count == 0:
        return None
    return Experts(count=count, active=keys.size("num_experts_per_tok", 2), width=width, shared=shared)


def _stack(keys: Keys, hidden: int, head_dim: int, usual: str) -> tuple[Layer, ...]:
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    kinds = keys.each("layer_types", tuple(KINDS), [usual] * count)
    turns = keys.choice("position_embedding_type", {"rope": True, "nope": False}, "nope")
    attention = Layer(read_rotary(keys, head_dim, whole=True) if turns else None)
    mamba = Layer(None, recurrence=_mamba(keys, hidden)) if LINEAR in map(KINDS.get, kinds) else attention
    return tuple(attention if KINDS[kind] == FULL else mamba for kind in kinds)


def _mamba(keys: Keys, hidden: int) -> Mamba2:
    heads, inner = keys.size("mamba_n_heads", 128), keys.size("mamba_expand", 2) * hidden
    width = inner // heads if keys.get("mamba_d_head") == "auto" else keys.size("mamba_d_head", inner // heads)
    if width * heads != inner:
        keys.refuse(f"{heads} mamba_n_heads of {width} are not {inner}, mamba_expand times hidden_size")
    found = Mamba2(
        heads,
        keys.size("mamba_n_groups", 1),
        width,
        keys.size("mamba_d_state", 256),
        keys.size("mamba_d_conv", 4, least=2),
        keys.number("rms_norm_eps", 1e-6),
        bias=keys.flag("mamba_proj_bias"),
        taps_bias=keys.flag("mamba_conv_bias", default=True),
    )
    return checked_mamba(keys, found)


UNLIMITED = ([0.0, float("inf")], [0.0, {"__float__": "Infinity"}])
"""A time_step_limit that is none, as older and newer files of transformers have it."""


def checked_mamba(keys: Keys, found: Mamba2) -> Mamba2:
    """`found`, with what does not fit refused."""
    if found.heads % found.groups:
        keys.refuse(f"{found.heads} heads of Mamba do not divide among {found.groups} groups")
    limit = keys.get("time_step_limit")
    if limit is not None and (not isinstance(limit, list | tuple) or list(limit) not in UNLIMITED):
        keys.refuse(f"time_step_limit is {limit}, must be from 0 to infinity")
    return found


_SPARSE, _SHARED = LAYER + "block_sparse_moe.", LAYER + "shared_mlp."
NAMES = {
    **USUAL,
    **MAMBA,
    **EXPERTS,
    "mlp.gate_up": _SHARED + "input_linear",
    "mlp.gate": _SHARED + "gate_proj",
    "mlp.up": _SHARED + "up_proj",
    "mlp.down": _SHARED + "output_linear",
    "experts.router": _SPARSE + "router.layer",
    "experts.gate": _SPARSE + "experts.{}.gate_proj",
    "experts.up": _SPARSE + "experts.{}.up_proj",
    "experts.down": _SPARSE + "experts.{}.down_proj",
    "fused.gate_up": _SPARSE + "input_linear.weight",
    "fused.down": _SPARSE + "output_linear.weight",
    "shared.gate_up": _SHARED + "input_linear",
    "shared.gate": _SHARED + "gate_proj",
    "shared.up": _SHARED + "up_proj",
    "shared.down": _SHARED + "output_linear",
}
"""Gate and up are one tensor; files of GGUF have them apart."""

MAMBA_KEYS = {
    "ssm.conv_kernel": "mamba_d_conv",
    "ssm.state_size": "mamba_d_state",
    "ssm.group_count": "mamba_n_groups",
    "ssm.time_step_rank": "mamba_n_heads",
    "ssm.inner_size": "mamba_inner",
}


def mamba_changed(names: Names) -> dict[str, Changed]:
    """What the converter makes of Mamba's tensors."""
    return {
        names["mamba.taps"] + ".weight": Changed(one=1),
        names["mamba.rate"]: Changed(values=lambda rate: np.log(-rate), flat=True),
        names["mamba.skip"]: Changed(flat=True),
        names["mamba.read_norm"] + ".weight": Changed(flat=True),
    }


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """The file counts the kv heads of each layer, none where it mixes by Mamba."""
    heads, inner = config.pop("kv_heads_by_layer", None), config.pop("mamba_inner")
    if isinstance(heads, list) and all(isinstance(count, int) for count in heads):
        config["layer_types"] = [FULL if count else LINEAR for count in heads]
        heads = max(heads, default=0)
    usual = {
        "num_key_value_heads": heads or config["num_attention_heads"],
        "mamba_d_head": inner // config["mamba_n_heads"],
        "mamba_expand": inner // config["hidden_size"],
        "num_local_experts": 0,
        "shared_intermediate_size": config["intermediate_size"],
    }
    return {**usual, **config, "architectures": [NAME]}


GGUF = GgufTable(
    architecture="granitehybrid",
    tensors=gguf_tensors(without(NAMES, "mlp.gate_up", "shared.gate_up")),
    required={**GGUF_KEYS, **MAMBA_KEYS},
    optional={
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
        "expert_shared_feed_forward_length": "shared_intermediate_size",
    },
    other={
        "attention.head_count_kv": "kv_heads_by_layer",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
    },
    flags={"mamba_conv_bias": "blk.0.ssm_conv1d.bias", "mamba_proj_bias": "blk.0.ssm_in.bias"},
    neighbours={NAMES["attention.q"]: "num_attention_heads", NAMES["attention.k"]: "num_key_value_heads"},
    changed=mamba_changed(NAMES),
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("granitemoehybrid",), read=read, names=NAMES, gguf=GGUF)
