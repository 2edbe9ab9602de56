"""The Llama family: Llama 2 and 3, SmolLM2, TinyLlama, Mistral; must not know files, pages or jax.

Read from top to bottom: config, names of tensors, GGUF files, and all of it together. A new family is a file like this one
and a line in `models.registry`; what dense decoders may differ in is listed in `models.dense.record`.
https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783, https://arxiv.org/abs/2310.06825.
"""

from typing import Any

from models import mixtral
from models.config import MOST_LAYERS, Keys, architectures
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Layer
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config

LLAMA, MISTRAL = "LlamaForCausalLM", "MistralForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    usual = MISTRAL if config.get("model_type") == "mistral" else LLAMA
    name = next((name for name in architectures(config) if name in (LLAMA, MISTRAL)), usual)
    keys = Keys(config, name)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    kv_heads = keys.size("num_key_value_heads", heads)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    window = keys.optional_size("sliding_window")
    rotary = read_rotary(keys, head_dim, whole=True)
    attention_bias = keys.flag("attention_bias")
    layer = Layer(rotary, window if name == MISTRAL else None)
    found = Dense(
        architecture=name,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings"),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=(layer,) * keys.size("num_hidden_layers", most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        mlp_bias=keys.flag("mlp_bias"),
    )
    return checked(keys, found)


NAMES = USUAL
IGNORED = (r"(model\.layers\.\d+\.self_attn\.|model\.)rotary_emb\.inv_freq",)


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF calls Mistral and Mixtral a llama; window and experts tell them apart."""
    usual = {"num_key_value_heads": config["num_attention_heads"]}
    name = mixtral.NAME if config.get("num_local_experts") else MISTRAL if config.get("sliding_window") else LLAMA
    return usual | config | {"architectures": [name]}


GGUF = GgufTable(
    architecture="llama",
    tensors=gguf_tensors({**mixtral.NAMES, **NAMES}),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
        "rope.freq_base": "rope_theta",
    },
    other={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    flags={"attention_bias": "blk.0.attn_q.bias"},
    neighbours={NAMES["attention.q"]: "num_attention_heads", NAMES["attention.k"]: "num_key_value_heads"},
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(LLAMA, MISTRAL),
    model_types=("llama", "mistral"),
    read=read,
    names=NAMES,
    gguf=GGUF,
    ignored=IGNORED,
)
