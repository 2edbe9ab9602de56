"""What dense decoders usually call their tensors, and what llama.cpp calls them, for a family to take and change; data only.

The keys are what a tensor is here; `models.dense.rules` says which of them a decoder has. Where q, k and v are one tensor, rows
in this order, a table has "attention.qkv" in their place, and "mlp.gate_up" in that of gate and up.

Experts are a tensor each, so that their stems have a second `{}`, for the expert's number. Without it, as `together` makes it,
a stem is that of one tensor of them all, [E, out, in], which files of GGUF have. "experts.correction_row" is a correction
that is stored as a row. "oss.gate_up" and "oss.down" are whole names
of tensors of all experts as gpt-oss has them: see `models.dense.expert_rules`; so are "fused.gate_up" and "fused.down", and
"turned.gate_up" and "turned.down".
"""

from collections.abc import Collection, Mapping

Names = Mapping[str, str]
"""What a tensor is -> the stem of its name in the family's own checkpoints, to which `.weight` and `.bias` come, with `{}`
for the number of a layer. `attention.sinks`, `experts.correction`, `scalar`, and of `delta` and `mamba` rate, shift and skip
are whole names."""

LAYER = "model.layers.{}."
USUAL: Names = {
    "embed": "model.embed_tokens",
    "attention.norm": LAYER + "input_layernorm",
    "attention.q": LAYER + "self_attn.q_proj",
    "attention.k": LAYER + "self_attn.k_proj",
    "attention.v": LAYER + "self_attn.v_proj",
    "attention.out": LAYER + "self_attn.o_proj",
    "mlp.norm": LAYER + "post_attention_layernorm",
    "mlp.gate": LAYER + "mlp.gate_proj",
    "mlp.up": LAYER + "mlp.up_proj",
    "mlp.down": LAYER + "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
}
QK_NORMS: Names = {"attention.q_norm": LAYER + "self_attn.q_norm", "attention.k_norm": LAYER + "self_attn.k_norm"}
SANDWICH_NORMS: Names = {
    "attention.post_norm": LAYER + "post_attention_layernorm",
    "mlp.norm": LAYER + "pre_feedforward_layernorm",
    "mlp.post_norm": LAYER + "post_feedforward_layernorm",
}
FUSED_QKV: Names = {"attention.qkv": LAYER + "self_attn.qkv_proj"}
FUSED_GATE_UP: Names = {"mlp.gate_up": LAYER + "mlp.gate_up_proj"}
DELTA: Names = {
    "delta.norm": LAYER + "input_layernorm",
    "delta.qkv": LAYER + "linear_attn.in_proj_qkv",
    "delta.z": LAYER + "linear_attn.in_proj_z",
    "delta.beta": LAYER + "linear_attn.in_proj_b",
    "delta.a": LAYER + "linear_attn.in_proj_a",
    "delta.taps": LAYER + "linear_attn.conv1d",
    "delta.rate": LAYER + "linear_attn.A_log",
    "delta.shift": LAYER + "linear_attn.dt_bias",
    "delta.read_norm": LAYER + "linear_attn.norm",
    "delta.out": LAYER + "linear_attn.out_proj",
}
CONVOLUTION: Names = {
    "convolution.norm": LAYER + "operator_norm",
    "convolution.inputs": LAYER + "conv.in_proj",
    "convolution.taps": LAYER + "conv.conv",
    "convolution.out": LAYER + "conv.out_proj",
}
MAMBA: Names = {
    "mamba.norm": LAYER + "input_layernorm",
    "mamba.inputs": LAYER + "mamba.in_proj",
    "mamba.taps": LAYER + "mamba.conv1d",
    "mamba.rate": LAYER + "mamba.A_log",
    "mamba.shift": LAYER + "mamba.dt_bias",
    "mamba.skip": LAYER + "mamba.D",
    "mamba.read_norm": LAYER + "mamba.norm",
    "mamba.out": LAYER + "mamba.out_proj",
}
EXPERTS: Names = {
    "experts.router": LAYER + "mlp.gate",
    "experts.gate": LAYER + "mlp.experts.{}.gate_proj",
    "experts.up": LAYER + "mlp.experts.{}.up_proj",
    "experts.down": LAYER + "mlp.experts.{}.down_proj",
}
CORRECTION: Names = {"experts.correction": LAYER + "mlp.gate.e_score_correction_bias"}
SHARED: Names = {
    "shared.gate": LAYER + "mlp.shared_experts.gate_proj",
    "shared.up": LAYER + "mlp.shared_experts.up_proj",
    "shared.down": LAYER + "mlp.shared_experts.down_proj",
}
SHARED_GATE: Names = {
    "shared.router": LAYER + "mlp.shared_expert_gate",
    "shared.gate": LAYER + "mlp.shared_expert.gate_proj",
    "shared.up": LAYER + "mlp.shared_expert.up_proj",
    "shared.down": LAYER + "mlp.shared_expert.down_proj",
}
BESIDE: Names = {
    "beside.alone": LAYER + "post_feedforward_layernorm_1",
    "beside.experts": LAYER + "pre_feedforward_layernorm_2",
    "beside.sum": LAYER + "post_feedforward_layernorm_2",
    "beside.router": LAYER + "router.scale",
    "beside.scales": LAYER + "router.per_expert_scale",
}
"""Of experts beside an MLP; the last two are whole names."""
SINKS: Names = {"attention.sinks": LAYER + "self_attn.sinks"}
LATENT: Names = {
    "attention.q_a": LAYER + "self_attn.q_a_proj",
    "attention.q_a_norm": LAYER + "self_attn.q_a_layernorm",
    "attention.q_b": LAYER + "self_attn.q_b_proj",
    "attention.kv_a": LAYER + "self_attn.kv_a_proj_with_mqa",
    "attention.kv_a_norm": LAYER + "self_attn.kv_a_layernorm",
    "attention.kv_b": LAYER + "self_attn.kv_b_proj",
    "attention.k_b": LAYER + "self_attn.k_b_proj",
    "attention.v_b": LAYER + "self_attn.v_b_proj",
}
"""Of latent attention, in place of k and v; the last two are in GGUF files only."""
PER_LAYER: Names = {
    "per_layer.embed": "model.embed_tokens_per_layer",
    "per_layer.project": "model.per_layer_model_projection",
    "per_layer.project_norm": "model.per_layer_projection_norm",
    "per_layer.gate": LAYER + "per_layer_input_gate",
    "per_layer.out": LAYER + "per_layer_projection",
    "per_layer.post_norm": LAYER + "post_per_layer_input_norm",
}
AHEAD: Names = {
    "fc": "mtp.fc",
    "embedding_norm": "mtp.pre_fc_norm_embedding",
    "hidden_norm": "mtp.pre_fc_norm_hidden",
    "norm": "mtp.norm",
}
BEHIND_LAST: Names = {"fc": "eh_proj", "embedding_norm": "enorm", "hidden_norm": "hnorm", "norm": "shared_head.norm"}
"""What drafts tokens, under names of its own or in the layer behind the last."""
NEXTN = {
    "blk.{}.nextn.eh_proj": LAYER + "eh_proj",
    "blk.{}.nextn.enorm": LAYER + "enorm",
    "blk.{}.nextn.hnorm": LAYER + "hnorm",
    "blk.{}.nextn.shared_head_norm": LAYER + "shared_head.norm",
}
"""The same in GGUF files -> the stems in the layer behind the last."""
NEXTN_NORMS = tuple(LAYER + BEHIND_LAST[what] for what in ("embedding_norm", "hidden_norm", "norm"))
SCALAR: Names = {"scalar": LAYER + "layer_scalar"}

# https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
_GGUF: Names = {
    "embed": "token_embd",
    "attention.norm": "blk.{}.attn_norm",
    "attention.qkv": "blk.{}.attn_qkv",
    "attention.q": "blk.{}.attn_q",
    "attention.q_norm": "blk.{}.attn_q_norm",
    "attention.k": "blk.{}.attn_k",
    "attention.k_norm": "blk.{}.attn_k_norm",
    "attention.v": "blk.{}.attn_v",
    "attention.q_a": "blk.{}.attn_q_a",
    "attention.q_a_norm": "blk.{}.attn_q_a_norm",
    "attention.q_b": "blk.{}.attn_q_b",
    "attention.kv_a": "blk.{}.attn_kv_a_mqa",
    "attention.kv_a_norm": "blk.{}.attn_kv_a_norm",
    "attention.kv_b": "blk.{}.attn_kv_b",
    "attention.k_b": "blk.{}.attn_k_b",
    "attention.v_b": "blk.{}.attn_v_b",
    "attention.sinks": "blk.{}.attn_sinks.weight",
    "attention.out": "blk.{}.attn_output",
    "attention.post_norm": "blk.{}.post_attention_norm",
    "delta.norm": "blk.{}.attn_norm",
    "delta.qkv": "blk.{}.attn_qkv",
    "delta.z": "blk.{}.attn_gate",
    "delta.gates": "blk.{}.ssm_ba",
    "delta.beta": "blk.{}.ssm_beta",
    "delta.a": "blk.{}.ssm_alpha",
    "delta.taps": "blk.{}.ssm_conv1d",
    "delta.rate": "blk.{}.ssm_a",
    "delta.shift": "blk.{}.ssm_dt.bias",
    "delta.read_norm": "blk.{}.ssm_norm",
    "delta.out": "blk.{}.ssm_out",
    "convolution.norm": "blk.{}.attn_norm",
    "convolution.inputs": "blk.{}.shortconv.in_proj",
    "convolution.taps": "blk.{}.shortconv.conv",
    "convolution.out": "blk.{}.shortconv.out_proj",
    "mamba.norm": "blk.{}.attn_norm",
    "mamba.inputs": "blk.{}.ssm_in",
    "mamba.taps": "blk.{}.ssm_conv1d",
    "mamba.rate": "blk.{}.ssm_a",
    "mamba.shift": "blk.{}.ssm_dt.bias",
    "mamba.skip": "blk.{}.ssm_d",
    "mamba.read_norm": "blk.{}.ssm_norm",
    "mamba.out": "blk.{}.ssm_out",
    "mlp.norm": "blk.{}.ffn_norm",
    "mlp.gate_up": "blk.{}.ffn_up",
    "mlp.gate": "blk.{}.ffn_gate",
    "mlp.up": "blk.{}.ffn_up",
    "mlp.down": "blk.{}.ffn_down",
    "mlp.post_norm": "blk.{}.post_ffw_norm",
    "per_layer.embed": "per_layer_token_embd",
    "per_layer.project": "per_layer_model_proj",
    "per_layer.project_norm": "per_layer_proj_norm",
    "per_layer.gate": "blk.{}.inp_gate",
    "per_layer.out": "blk.{}.proj",
    "per_layer.post_norm": "blk.{}.post_norm",
    "scalar": "blk.{}.layer_output_scale.weight",
    "experts.router": "blk.{}.ffn_gate_inp",
    "experts.correction": "blk.{}.exp_probs_b.bias",
    "experts.gate": "blk.{}.ffn_gate_exps",
    "experts.up": "blk.{}.ffn_up_exps",
    "experts.down": "blk.{}.ffn_down_exps",
    "experts.into": "blk.{}.ffn_latent_down",
    "experts.back": "blk.{}.ffn_latent_up",
    "beside.alone": "blk.{}.post_ffw_norm_1",
    "beside.experts": "blk.{}.pre_ffw_norm_2",
    "beside.sum": "blk.{}.post_ffw_norm_2",
    "beside.router": "blk.{}.ffn_gate_inp.scale",
    "beside.scales": "blk.{}.ffn_down_exps.scale",
    "shared.router": "blk.{}.ffn_gate_inp_shexp",
    "shared.gate": "blk.{}.ffn_gate_shexp",
    "shared.up": "blk.{}.ffn_up_shexp",
    "shared.down": "blk.{}.ffn_down_shexp",
    "norm": "output_norm",
    "head": "output",
}
KNOWN = frozenset(_GGUF) | {
    "oss.gate_up",
    "oss.down",
    "fused.gate_up",
    "fused.down",
    "turned.gate_up",
    "turned.down",
    "delta.qkvz",
    "shared.gate_up",
    "experts.correction_row",
}
GGUF_KEYS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
"""The metadata that every dense decoder's file has -> keys of config.json."""


def without(names: Names, *left_out: str) -> Names:
    """The same table but for these."""
    return {what: stem for what, stem in names.items() if what not in left_out}


def together(stem: str) -> str:
    """Of the experts' tensors the stem of the one tensor that has them all."""
    return stem.replace("experts.{}", "experts")


def has_drafting(tensors: Collection[str]) -> bool:
    """Whether a checkpoint of these tensors has what drafts tokens."""
    return any(name == f"{AHEAD['fc']}.weight" or name.endswith(f".{BEHIND_LAST['fc']}.weight") for name in tensors)


def gguf_tensors(names: Names) -> dict[str, str]:
    """`models.gguf.GgufTable.tensors` of a family with these names."""
    return {_GGUF[what]: together(stem) for what, stem in names.items() if what in _GGUF}
