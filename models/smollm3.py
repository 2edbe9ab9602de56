"""The SmolLM3 family; must not know files, pages or jax.

A Llama whose every fourth layer does not turn by position. https://huggingface.co/blog/smollm3,
https://arxiv.org/abs/2501.18795.
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors
from models.dense.record import FULL, SILU, SLIDING, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "SmolLM3ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    bias = keys.flag("attention_bias")
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
        stack=_stack(keys, head_dim),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings", default=True),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=keys.flag("mlp_bias"),
    )
    return checked(keys, found)


def _stack(keys: Keys, head_dim: int) -> tuple[Layer, ...]:
    """Where no_rope_layers has a 1 a layer turns; with use_sliding_window those that do not turn see a window."""
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    rotary, every = read_rotary(keys, head_dim, theta=2000000.0, whole=True), keys.size("no_rope_layer_interval", 4)
    turns = keys.bits("no_rope_layers", [n % every != 0 for n in range(1, count + 1)])
    windowed = keys.flag("use_sliding_window")
    window = keys.optional_size("sliding_window") if windowed else None
    usual = [FULL if turn or window is None else SLIDING for turn in turns]
    kinds = keys.each("layer_types", (SLIDING, FULL), usual)
    if SLIDING in kinds and window is None:
        keys.refuse("layer_types has sliding_attention, and use_sliding_window and sliding_window say no window")
    return tuple(
        Layer(rotary if turn else None, window if kind == SLIDING else None)
        for turn, kind in zip(turns, kinds, strict=True)
    )


NAMES = USUAL

GGUF = GgufTable(
    architecture="smollm3",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    },
    neighbours={NAMES["attention.q"]: "num_attention_heads", NAMES["attention.k"]: "num_key_value_heads"},
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("smollm3",), read=read, names=NAMES, gguf=GGUF)
