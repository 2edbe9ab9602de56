"""The Mixtral family: 8x7B and 8x22B; must not know files, pages or jax.

A Mistral whose MLP is eight, of which a token goes through two. https://arxiv.org/abs/2401.04088. Its GGUF files are those of
a llama with experts: see `models.llama`.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import EXPERTS, LAYER, USUAL, without
from models.dense.record import SILU, Dense, Experts, Layer
from models.rope import read_rotary
from models.spec import Config

NAME = "MixtralForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size", 4096), keys.size("num_attention_heads", 32)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    width = keys.size("intermediate_size", 14336)
    experts = Experts(
        count=keys.size("num_local_experts", keys.size("num_experts", 8)),
        active=keys.size("num_experts_per_tok", 2),
        width=width,
    )
    layer = Layer(
        read_rotary(keys, head_dim, theta=1000000.0, whole=True), keys.optional_size("sliding_window"), experts=experts
    )
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 32000),
        hidden_size=hidden,
        intermediate_size=width,
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=(layer,) * keys.size("num_hidden_layers", 32, most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
    )
    return checked(keys, found)


_MLP = LAYER + "block_sparse_moe."
NAMES = {
    **without(USUAL, "mlp.gate", "mlp.up", "mlp.down"),
    **EXPERTS,
    "experts.router": _MLP + "gate",
    "experts.gate": _MLP + "experts.{}.w1",
    "experts.up": _MLP + "experts.{}.w3",
    "experts.down": _MLP + "experts.{}.w2",
}

FAMILY = dense_family(architectures=(NAME,), model_types=("mixtral",), read=read, names=NAMES)
