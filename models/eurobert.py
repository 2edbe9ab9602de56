"""EuroBERT: what embeds with its 210M, 610M or 2.1B; must not know files or jax.

A Llama whose tokens all see each other, saved with a pooling. Those that fill in masks or score have a head, and are
refused. https://arxiv.org/abs/2503.05500.
"""

from typing import Any

from models import llama
from models.config import MOST_LAYERS, Keys
from models.dense.family import checked
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Layer
from models.encoder.family import pooling_of
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config, Embedder, Family

NAME = "EuroBertModel"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size", 768), keys.size("num_attention_heads", 12)
    head_dim = keys.optional_size("head_dim") or max(hidden // heads, 1)
    bias = keys.flag("attention_bias")
    pooling_of(keys)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 128256),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 3072),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 8192),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=(Layer(read_rotary(keys, head_dim, whole=True)),) * keys.size("num_hidden_layers", 12, most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=True,  # nobody asks for logits
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=keys.flag("mlp_bias"),
    )
    return checked(keys, found)


NAMES = USUAL


def _build(config: Config, **choices: Any) -> Embedder:
    from models.dense.build import build_dense  # brings JAX, which who only reads configs does without
    from models.encoder.decoder import embedding_decoder

    found = read(config)
    model = build_dense(found, NAMES, ignored=llama.IGNORED, **choices)
    pooling = pooling_of(Keys(config, NAME))
    return embedding_decoder(model, pooling, found.hidden_size, choices.get("storage"), causal=False)


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"architectures": [NAME]}


GGUF = GgufTable(
    architecture="eurobert",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "rope.freq_base": "rope_theta",
    },
    pooling=1,
    refused={"attention.causal": "only one in which all tokens see each other is read"},
    finish=_finish,
)

FAMILY = Family(
    architectures=(NAME,),
    model_types=("eurobert",),
    read=read,
    build=_build,
    gguf=(GGUF,),
    purpose=lambda _: "embed",
)
