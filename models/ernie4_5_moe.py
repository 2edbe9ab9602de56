"""The ERNIE 4.5 family with experts: 21B-A3B and 300B-A47B, their text and thinking ones; must not know files, pages or jax.

An ERNIE 4.5 of whose layers some have experts, chosen by softmax with a correction, and one MLP that all tokens share. What
drafts tokens (mtp) is not read. https://ernie.baidu.com/blog/publication/ERNIE_Technical_Report.pdf.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import CORRECTION, EXPERTS, GGUF_KEYS, LAYER, SHARED, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Experts, Layer
from models.gguf import Changed, GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Ernie4_5_MoeForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size", 2560), keys.size("num_attention_heads", 20)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    if keys.flag("use_bias"):
        keys.refuse("use_bias must be false")
    rotary = read_rotary(keys, head_dim, theta=500000.0, whole=True, interleaved=True)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 103424),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 12288),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=tuple(Layer(rotary, experts=experts) for experts in _experts(keys)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings", default=True),
    )
    return checked(keys, found)


def _experts(keys: Keys) -> list[Experts | None]:
    """Of each layer: in every moe_layer_interval-th from the first to the last that have some."""
    width, count = keys.size("moe_intermediate_size", 1536), keys.size("num_hidden_layers", 28, most=MOST_LAYERS)
    made = Experts(
        count=keys.size("moe_num_experts", 64),
        active=keys.size("moe_k", 6),
        width=width,
        correction=True,
        shared=width * keys.size("moe_num_shared_experts", 2, least=0),
    )
    first, every = keys.size("moe_layer_start_index", 1, least=0), keys.size("moe_layer_interval", 1)
    last = keys.size("moe_layer_end_index", -1, least=-1)
    until = count if last == -1 else last + 1
    return [made if (n + 1) % every == 0 and first <= n < until else None for n in range(count)]


NAMES = {
    **USUAL,
    **EXPERTS,
    **SHARED,
    **CORRECTION,
    "experts.correction_row": LAYER + "mlp.moe_statics.e_score_correction_bias",
}
"""The correction is a row; as it is in files of GGUF it has the usual name."""

GGUF = GgufTable(
    architecture="ernie4_5-moe",
    tensors=gguf_tensors(NAMES),
    required={
        **GGUF_KEYS,
        "expert_count": "moe_num_experts",
        "expert_used_count": "moe_k",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
        "interleave_moe_layer_step": "moe_layer_interval",
    },
    other={"expert_shared_count": "moe_num_shared_experts", "leading_dense_block_count": "moe_layer_start_index"},
    changed={NAMES["experts.correction"]: Changed(flat=True)},
    finish=finish_as(NAME),
)


FAMILY = dense_family(
    architectures=(NAME,),
    model_types=("ernie4_5_moe",),
    read=read,
    names=NAMES,
    gguf=GGUF,
    ignored=(r"model\.mtp_.*",),
)
