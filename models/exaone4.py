"""The EXAONE 4 family: 4.0 of 1.2B and 32B, 4.0.1; must not know files, pages or jax.

Norms of each head's query and key, and norms behind attention and MLP alone. In the larger size three of four layers see a
window and turn; the fourth sees everything and does not. https://arxiv.org/abs/2507.11407.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, LAYER, QK_NORMS, USUAL, gguf_tensors, without
from models.dense.record import FULL, SILU, SLIDING, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Exaone4ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size", 4096), keys.size("num_attention_heads", 32)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 102400),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 16384),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 2048),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=_stack(keys, head_dim),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        pre_norms=False,
        post_norms=True,
        qk_norm=True,
    )
    return checked(keys, found)


def _stack(keys: Keys, head_dim: int) -> tuple[Layer, ...]:
    """Without a window all layers see everything, and turn."""
    count, window = keys.size("num_hidden_layers", 32, most=MOST_LAYERS), keys.optional_size("sliding_window")
    rotary = read_rotary(keys, head_dim, whole=True)
    if window is None:
        return (Layer(rotary),) * count
    said = keys.get("sliding_window_pattern")
    letters = said if isinstance(said, str) and said else "L" * (_every(keys) - 1) + "G"
    usual = [SLIDING if letters[n % len(letters)] == "L" else FULL for n in range(count)]
    kinds = keys.each("layer_types", (SLIDING, FULL), usual)
    return tuple(Layer(rotary, window) if kind == SLIDING else Layer(None) for kind in kinds)


def _every(keys: Keys) -> int:
    return 4 if isinstance(keys.get("sliding_window_pattern"), str) else keys.size("sliding_window_pattern", 4, most=64)


NAMES = {
    **without(USUAL, "attention.norm", "mlp.norm"),
    **QK_NORMS,
    "attention.post_norm": LAYER + "post_attention_layernorm",
    "mlp.post_norm": LAYER + "post_feedforward_layernorm",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    pattern = config.pop("pattern", None)
    kinds = {"layer_types": [SLIDING if slides else FULL for slides in pattern]} if isinstance(pattern, list) else {}
    return finish_as(NAME)(config | kinds)


GGUF = GgufTable(
    architecture="exaone4",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
        "rope.freq_base": "rope_theta",
    },
    other={"attention.sliding_window_pattern": "pattern"},
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("exaone4",), read=read, names=NAMES, gguf=GGUF)
