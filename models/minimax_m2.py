"""The MiniMax-M2 family: M2, M2.1 and M2.5; must not know files, pages or jax.

230B-A10B. Every layer has experts, which sigmoids choose with a correction; one norm of all heads' queries together, and one
of all keys; half of each head turns. https://github.com/MiniMax-AI/MiniMax-M2. The modules that draft tokens are not read.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import EXPERTS, GGUF_KEYS, LAYER, QK_NORMS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Experts, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "MiniMaxM2ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    heads, head_dim, width = (
        keys.size("num_attention_heads", 48),
        keys.size("head_dim", 128),
        keys.size("intermediate_size", 1536),
    )
    turned = keys.optional_size("rotary_dim")
    rotary = read_rotary(keys, head_dim, theta=5000000.0, share=1.0 if turned is None else turned / head_dim)
    experts = Experts(
        count=keys.size("num_local_experts", 256),
        active=keys.size("num_experts_per_tok", 8),
        width=width,
        scoring="sigmoid",
        correction=True,
    )
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 200064),
        hidden_size=keys.size("hidden_size", 3072),
        intermediate_size=width,
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", 8),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 196608),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=(Layer(rotary, experts=experts),) * keys.size("num_hidden_layers", 62, most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qk_norm=True,
        heads_together=True,
    )
    return checked(keys, found)


_SPARSE = LAYER + "block_sparse_moe."
NAMES = {
    **USUAL,
    **QK_NORMS,
    **EXPERTS,
    "experts.router": _SPARSE + "gate",
    "experts.correction": _SPARSE + "e_score_correction_bias",
    "experts.gate": _SPARSE + "experts.{}.w1",
    "experts.up": _SPARSE + "experts.{}.w3",
    "experts.down": _SPARSE + "experts.{}.w2",
}

GGUF = GgufTable(
    architecture="minimax-m2",
    tensors=gguf_tensors(NAMES),
    required={
        **GGUF_KEYS,
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
    },
    optional={"rope.freq_base": "rope_theta"},
    finish=finish_as(NAME),
)

FAMILY = dense_family(
    architectures=(NAME,), model_types=("minimax_m2",), read=read, names=NAMES, gguf=GGUF, ignored=(r"(model\.)?mtp.*",)
)
