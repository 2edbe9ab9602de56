"""The Qwen2 family: Qwen2 and 2.5, their Coder and Math, QwQ, DeepSeek-R1's distillations; must not know files, pages or jax.

0.5B to 72B. A Llama but for biases on queries, keys and values, and for windows, which no released size has switched on.
https://arxiv.org/abs/2407.10671, https://arxiv.org/abs/2412.15115.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors
from models.dense.record import FULL, SILU, SLIDING, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Qwen2ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    rotary = read_rotary(keys, head_dim, whole=True)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 32768),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(Layer(rotary, window) for window in windows(keys)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=True,
    )
    return checked(keys, found)


def windows(keys: Keys) -> list[int | None]:
    """How far back each layer sees; None: to the beginning. `sliding_window` counts only where it is switched on, and then
    from layer `max_window_layers` on, unless `layer_types` says it of each.
    """
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    window = keys.optional_size("sliding_window") if keys.flag("use_sliding_window") else None
    whole = count if window is None else min(count, keys.size("max_window_layers", 28, least=0))
    kinds = keys.each("layer_types", (SLIDING, FULL), (FULL,) * whole + (SLIDING,) * (count - whole))
    return [window if kind == SLIDING else None for kind in kinds]


NAMES = USUAL


GGUF = GgufTable(
    architecture="qwen2",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    },
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("qwen2",), read=read, names=NAMES, gguf=GGUF)
