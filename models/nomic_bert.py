"""Nomic's BERT: nomic-embed-text v1 and v1.5; must not know files or jax.

A BERT whose tokens turn by position, with a gated MLP and maps without biases. That of v2, with experts, is refused: its GGUF
architecture is another one. https://arxiv.org/abs/2402.01613.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.encoder.family import encoder_family, pooling_of
from models.encoder.record import Encoder, Kind, Layer
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config

NAME = "NomicBertModel"
_ACTIVATIONS: dict[str, Kind] = {"silu": "silu", "swiglu": "silu"}
_RELEASED = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "max_trained_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "activation_function": "hidden_act",
    "rotary_emb_base": "rope_theta",
}
"""Keys of the released config.json, which says them as GPT-2 does, and what transformers calls them."""
_ONLY: dict[str, tuple[object, ...]] = {
    "prenorm": (False,),
    "qkv_proj_bias": (False,),
    "mlp_fc1_bias": (False,),
    "mlp_fc2_bias": (False,),
    "rotary_emb_fraction": (1, 1.0),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (),
    "moe_every_n_layers": (0, -1),
}
"""What else such a config may say, and where that is what is served; absent is."""


def read(config: Config) -> Encoder:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys({**{own: config[key] for key, own in _RELEASED.items() if key in config}, **config}, NAME)
    hidden, heads = keys.size("hidden_size", 768), keys.size("num_attention_heads", 12)
    head_dim = keys.size("head_dim", max(hidden // heads, 1))
    rotary = read_rotary(keys, head_dim, theta=1000.0, whole=True)
    found = Encoder(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 30528),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 3072),
        heads=heads,
        max_positions=keys.size("max_position_embeddings", 2048),
        epsilon=keys.number("layer_norm_eps", 1e-12),
        stack=(Layer(rotary),) * keys.size("num_hidden_layers", 12, most=MOST_LAYERS),
        pooling=pooling_of(keys),
        activation=keys.choice("hidden_act", _ACTIVATIONS, "silu"),
        token_types=keys.size("type_vocab_size", 2),
        gated=True,
        attention_bias=False,
        mlp_bias=False,
    )
    for key, served in _ONLY.items():
        if keys.get(key) is not None and keys.get(key) not in served:
            keys.refuse(f"{key} is {keys.get(key)!r}, which is not served")
    if head_dim * heads != hidden:
        keys.refuse(f"hidden_size {hidden} does not divide among {heads} attention heads of {head_dim}")
    keys.check()
    return found


_LAYER = "encoder.layers.{}."
NAMES = {
    "tokens": "embeddings.word_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embedding_norm": "emb_ln",
    "qkv": _LAYER + "attn.Wqkv",
    "out": _LAYER + "attn.out_proj",
    "attention_norm": _LAYER + "norm1",
    "up": _LAYER + "mlp.fc11",
    "gate": _LAYER + "mlp.fc12",
    "down": _LAYER + "mlp.fc2",
    "mlp_norm": _LAYER + "norm2",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"architectures": [NAME]}


_GGUF_LAYER = "blk.{}."
GGUF = GgufTable(
    architecture="nomic-bert",
    tensors={
        "token_embd": NAMES["tokens"],
        "token_types": NAMES["types"],
        "token_embd_norm": NAMES["embedding_norm"],
        _GGUF_LAYER + "attn_qkv": NAMES["qkv"],
        _GGUF_LAYER + "attn_output": NAMES["out"],
        _GGUF_LAYER + "attn_output_norm": NAMES["attention_norm"],
        _GGUF_LAYER + "ffn_up": NAMES["up"],
        _GGUF_LAYER + "ffn_gate": NAMES["gate"],
        _GGUF_LAYER + "ffn_down": NAMES["down"],
        _GGUF_LAYER + "layer_output_norm": NAMES["mlp_norm"],
    },
    required={
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "rope.freq_base": "rope_theta",
    },
    pooling=1,
    refused={"attention.causal": "only one in which all tokens see each other is read"},
    finish=_finish,
)

FAMILY = encoder_family(
    architectures=(NAME,),
    model_types=("nomic_bert",),
    read=read,
    names=lambda _: NAMES,
    gguf=GGUF,
)
