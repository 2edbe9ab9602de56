"""The Nemotron-H family: Nemotron-H, Nemotron Nano 2 and Nemotron 3 Nano, Super and Ultra; must not know files, pages or jax.

A layer is one thing alone: Mamba 2 (https://arxiv.org/abs/2405.21060), attention that does not turn by position, an MLP without
a gate, of squared rectified sums, or such experts, which sigmoids choose as DeepSeek V3's, beside one that all tokens share; in
Super and Ultra experts work on a latent. https://arxiv.org/abs/2504.03624, https://arxiv.org/abs/2512.20848. What drafts tokens
(mtp) is not read. Mamba's steps may be below `time_step_min`: transformers lifts those of a prompt, not those that follow.
"""

from collections.abc import Sequence
from typing import Any

from attrs import evolve

from models.config import MOST_LAYERS, Keys
from models.dense.expert_config import read_sigmoid_experts
from models.dense.family import checked, dense_family
from models.dense.names import CORRECTION, EXPERTS, GGUF_KEYS, MAMBA, USUAL, gguf_tensors, without
from models.dense.record import FULL, LINEAR, RELU2, SILU, Dense, Experts, Layer, Mamba2
from models.gguf import GgufTable
from models.granitemoehybrid import checked_mamba, mamba_changed
from models.spec import Config

NAME = "NemotronHForCausalLM"
MLP, SPARSE = "mlp", "moe"
KINDS = {"mamba": LINEAR, "attention": FULL, LINEAR: LINEAR, FULL: FULL, MLP: MLP, SPARSE: SPARSE}
"""Of layers, as older and newer files call them."""
LETTERS = {"M": LINEAR, "*": FULL, "-": MLP, "E": SPARSE}
"""The same in hybrid_override_pattern."""


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads = keys.size("num_attention_heads", 32)
    if keys.flag("attention_bias"):
        keys.refuse("attention_bias must be false")
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 131072),
        hidden_size=keys.size("hidden_size", 4096),
        intermediate_size=keys.size("intermediate_size", 21504),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", 8),
        head_dim=keys.size("head_dim", keys.optional_size("attention_head_dim") or 128),
        max_positions=keys.size("max_position_embeddings", 4096),
        epsilon=keys.number("layer_norm_epsilon", 1e-5),
        stack=_stack(keys),
        activation=keys.choice("mlp_hidden_act", {"relu2": RELU2}, "relu2"),
        tied=keys.flag("tie_word_embeddings"),
        mlp_bias=keys.flag("mlp_bias"),
    )
    if found.mlp_bias and found.mixtures:
        keys.refuse("mlp_bias must be false where there are experts")
    return checked(keys, found)


def _stack(keys: Keys) -> tuple[Layer, ...]:
    kinds = _kinds(keys)
    made = {LINEAR: lambda: Layer(None, recurrence=_mamba(keys), mlp=False), FULL: lambda: Layer(None, mlp=False)}
    made |= {MLP: lambda: Layer(None, mixer=False), SPARSE: lambda: Layer(None, experts=_experts(keys), mixer=False)}
    layers = {kind: made[kind]() for kind in dict.fromkeys(kinds)}
    return tuple(layers[kind] for kind in kinds)


def _kinds(keys: Keys) -> Sequence[str]:
    """Of the layers, by their names or letters."""
    pattern, named = keys.get("hybrid_override_pattern"), keys.get("layers_block_type") or keys.get("layer_types")
    if isinstance(named, list | tuple) and 0 < len(named) <= MOST_LAYERS:
        if all(isinstance(kind, str) and kind in KINDS for kind in named):
            return [KINDS[kind] for kind in named]
    elif (
        named is None
        and isinstance(pattern, str)
        and 0 < len(pattern) <= MOST_LAYERS
        and set(pattern) <= LETTERS.keys()
    ):
        return [LETTERS[letter] for letter in pattern]
    keys.refuse(f"layers_block_type, or hybrid_override_pattern of {' '.join(LETTERS)}, must name every layer")
    return [MLP]


def _mamba(keys: Keys) -> Mamba2:
    keys.choice("mamba_hidden_act", {"silu": SILU}, "silu")
    found = Mamba2(
        keys.size("mamba_num_heads", 128),
        keys.size("n_groups", 8),
        keys.size("mamba_head_dim", 64),
        keys.size("ssm_state_size", 128),
        keys.size("conv_kernel", 4, least=2),
        keys.number("layer_norm_epsilon", 1e-5),
        bias=keys.flag("use_bias"),
        taps_bias=keys.flag("use_conv_bias", default=True),
    )
    return checked_mamba(keys, found)


def _experts(keys: Keys) -> Experts:
    found = read_sigmoid_experts(keys, count=8, active=2, width=7688, scale=1.0)
    latent, shared = keys.optional_size("moe_latent_size"), keys.size("moe_shared_expert_intermediate_size", 7688)
    return evolve(found, shared=shared, latent=latent or 0)


_ROOT = "backbone.layers.{}."
_MIXER = _ROOT + "mixer."
NAMES = {
    **{what: stem.replace("model.layers.{}.mamba.", _MIXER) for what, stem in MAMBA.items()},
    **{what: stem.replace("model.layers.{}.self_attn.", _MIXER) for what, stem in without(USUAL, "mlp.gate").items()},
    **{what: stem.replace("model.layers.{}.mlp.", _MIXER) for what, stem in {**EXPERTS, **CORRECTION}.items()},
    "embed": "backbone.embeddings",
    "norm": "backbone.norm_f",
    "attention.norm": _ROOT + "norm",
    "mamba.norm": _ROOT + "norm",
    "mlp.norm": _ROOT + "norm",
    "mlp.up": _MIXER + "up_proj",
    "mlp.down": _MIXER + "down_proj",
    "shared.up": _MIXER + "shared_experts.up_proj",
    "shared.down": _MIXER + "shared_experts.down_proj",
    "experts.into": _MIXER + "fc1_latent_proj",
    "experts.back": _MIXER + "fc2_latent_proj",
}
del NAMES["experts.gate"]


def _counts(said: Any) -> bool:
    return isinstance(said, list) and all(isinstance(count, int) for count in said)


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """The file counts the kv heads and the width of the MLP of each layer, none where it has neither; Mamba has neither."""
    heads, widths = config.pop("kv_heads_by_layer", None), config.pop("widths_by_layer", None)
    ahead, inner = config.pop("nextn_predict_layers", 0), config.pop("mamba_inner")
    if _counts(heads) and _counts(widths) and len(heads) == len(widths):
        layers = len(heads) - (ahead if isinstance(ahead, int) else 0)
        wide = SPARSE if config.get("n_routed_experts") else MLP
        both = list(zip(heads, widths, strict=True))[:layers]
        config["layers_block_type"] = [FULL if kv else wide if width else LINEAR for kv, width in both]
        config |= {"num_key_value_heads": max(heads, default=1), "intermediate_size": max(widths, default=1)}
    return {**config, "mamba_head_dim": inner // config["mamba_num_heads"], "architectures": [NAME]}


GGUF = GgufTable(
    architecture="nemotron_h",
    tensors=gguf_tensors(without(NAMES, "mlp.norm")),
    required={
        **{key: own for key, own in GGUF_KEYS.items() if key != "feed_forward_length"},
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        "attention.key_length": "head_dim",
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "ssm_state_size",
        "ssm.group_count": "n_groups",
        "ssm.time_step_rank": "mamba_num_heads",
        "ssm.inner_size": "mamba_inner",
    },
    other={
        "attention.head_count_kv": "kv_heads_by_layer",
        "feed_forward_length": "widths_by_layer",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
        "expert_weights_norm": "norm_topk_prob",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_group_count": "n_group",
        "moe_latent_size": "moe_latent_size",
        "nextn_predict_layers": "nextn_predict_layers",
    },
    flags={"use_conv_bias": "blk.0.ssm_conv1d.bias", "use_bias": "blk.0.ssm_in.bias"},
    changed=mamba_changed(NAMES),
    finish=_finish,
)


def _drafting(found: Dense) -> tuple[str, ...]:
    """The tensors of what drafts tokens, in either container."""
    return r"mtp\..*", rf"blk\.{len(found.stack)}\..*", rf"backbone\.layers\.{len(found.stack)}\..*"


FAMILY = evolve(
    dense_family(architectures=(NAME,), model_types=("nemotron_h",), read=read, names=NAMES, ignored=_drafting),
    gguf=(GGUF, evolve(GGUF, architecture="nemotron_h_moe")),
)
