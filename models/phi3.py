"""The Phi-3 family: Phi-3 and 3.5 mini, small and medium, Phi-4 and its mini; must not know files, pages or jax.

A Llama whose q, k and v are one tensor, and gate and up as well; in Phi-4-mini a part of each head turns. Frequencies of the
longer ones (LongRoPE, https://arxiv.org/abs/2402.13753) change with the length of a text: those of texts within the original
context are served, and that context is all that is offered. https://arxiv.org/abs/2404.14219.
"""

from collections.abc import Mapping
from typing import Any

from models.config import MOST_LAYERS, Keys, is_positive
from models.dense.family import checked, dense_family
from models.dense.names import FUSED_GATE_UP, FUSED_QKV, GGUF_KEYS, USUAL, gguf_tensors, without
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import LONG, read_rotary, scaling_type
from models.spec import Config

NAME = "Phi3ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    scaling = _scaling(config)
    keys = Keys({**config, "rope_parameters": scaling} if scaling else config, NAME)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    head_dim = keys.optional_size("head_dim") or hidden // heads
    context = "original_max_position_embeddings" if scaling else "max_position_embeddings"
    layer = Layer(read_rotary(keys, head_dim), keys.optional_size("sliding_window"))
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size(context, 4096),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=(layer,) * keys.size("num_hidden_layers", most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
    )
    return checked(keys, found)


def _scaling(config: Config) -> dict[str, Any]:
    """All that a scaling needs in one object, empty where there is none: contexts stand beside it, and older files call it
    su or yarn.
    """
    said = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(said, Mapping) or scaling_type(said) == "default":
        return {}
    longest, original = (config.get(f"{which}max_position_embeddings", 4096) for which in ("", "original_"))
    factor = {"factor": longest / original} if is_positive(longest) and is_positive(original) else {}
    kind = LONG if scaling_type(said) in ("su", "yarn") else scaling_type(said)
    return {**factor, "original_max_position_embeddings": original, **said, "rope_type": kind}


NAMES = {
    **without(USUAL, "attention.q", "attention.k", "attention.v", "mlp.gate", "mlp.up"),
    **FUSED_QKV,
    **FUSED_GATE_UP,
}

GGUF = GgufTable(
    architecture="phi3",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.sliding_window": "sliding_window",
        "rope.freq_base": "rope_theta",
        "rope.scaling.original_context_length": "original_max_position_embeddings",
    },
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("phi3",), read=read, names=NAMES, gguf=GGUF)
