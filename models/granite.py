"""The Granite family, dense: Granite 3.0 to 3.3, and those of 4 without experts or Mamba; must not know files, pages or jax.

A Llama with four multipliers: of embeddings, of scores of attention, of what each part adds to the residual stream, and of
logits. https://arxiv.org/abs/2408.13359 (its section on maximal update parametrization).
"""

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "GraniteForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit.

    Each part adds m times its output. That is the same network on a stream of 1 / m its size, onto which parts add their
    output as it is: embeddings are divided by m, and norms, which undo a stream's size, have their epsilon divided by m^2.
    """
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    head_dim = keys.optional_size("head_dim") or hidden // heads
    bias, part = keys.flag("attention_bias"), keys.number("residual_multiplier", 1.0)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 2048),
        epsilon=keys.number("rms_norm_eps", 1e-6) / part**2,
        stack=(Layer(read_rotary(keys, head_dim, whole=True)),) * keys.size("num_hidden_layers", most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=keys.flag("mlp_bias"),
        scale=keys.number("attention_multiplier", 1.0),
        embedding_scale=keys.number("embedding_multiplier", 1.0) / part,
        logit_scale=1 / keys.number("logits_scaling", 1.0),
    )
    return checked(keys, found)


NAMES = USUAL

GGUF = GgufTable(
    architecture="granite",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.scale": "attention_multiplier",
        "attention.head_count_kv": "num_key_value_heads",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
        "rope.freq_base": "rope_theta",
    },
    flags={"attention_bias": "blk.0.attn_q.bias"},
    neighbours={NAMES["attention.q"]: "num_attention_heads", NAMES["attention.k"]: "num_key_value_heads"},
    finish=finish_as(NAME),
)

FAMILY = dense_family(architectures=(NAME,), model_types=("granite",), read=read, names=NAMES, gguf=GGUF)
