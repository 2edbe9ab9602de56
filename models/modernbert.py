"""ModernBERT: embedders and rerankers over it, as those of gte, Nomic and Granite; must not know files or jax.

A BERT but for norms before attention and MLP, a gated MLP, positions by rotary, and attention that sees half of
`local_attention` to either side in two of three layers. https://arxiv.org/abs/2412.13663.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys, architectures
from models.dense.record import FULL, SLIDING
from models.encoder.family import SCORES, encoder_family, labels, pooling_of, ranking, scores
from models.encoder.record import Classifier, Encoder, HeadKind, Kind, Layer
from models.gguf import GgufTable
from models.pooling import Pooling
from models.rope import read_rotary
from models.spec import Config

NAME = "ModernBertModel"
ARCHITECTURES = (NAME, "ModernBert" + SCORES)
_ACTIVATIONS: dict[str, Kind] = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
_HEAD_ACTIVATIONS: dict[str, HeadKind] = {"gelu": "gelu", "tanh": "tanh"}
_POOLINGS = {"cls": Pooling("cls"), "mean": Pooling("mean")}


def read(config: Config) -> Encoder:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    name = next(iter(architectures(config)), NAME)
    keys = Keys(config, name)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    head_dim, ranks = max(hidden // heads, 1), scores(config)
    pooling = keys.choice("classifier_pooling", _POOLINGS, "cls") if ranks else pooling_of(keys)
    activation = keys.choice("classifier_activation", _HEAD_ACTIVATIONS, "gelu")
    classifier = Classifier(labels(keys), activation, True, keys.flag("classifier_bias")) if ranks else None
    found = Encoder(
        architecture=name,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        heads=heads,
        max_positions=keys.size("max_position_embeddings", 8192),
        epsilon=keys.number("norm_eps", 1e-5),
        stack=_stack(keys, head_dim),
        pooling=pooling,
        activation=keys.choice("hidden_activation", _ACTIVATIONS, "gelu"),
        pre_norms=True,
        gated=True,
        norm_bias=keys.flag("norm_bias"),
        attention_bias=keys.flag("attention_bias"),
        mlp_bias=keys.flag("mlp_bias"),
        classifier=classifier,
    )
    if hidden % heads:
        keys.refuse(f"hidden_size {hidden} does not divide among {heads} attention heads")
    keys.check()
    return found


def _stack(keys: Keys, head_dim: int) -> tuple[Layer, ...]:
    """By `layer_types`, or as older configs have it one layer in `global_attn_every_n_layers` that sees everything."""
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    every = keys.size("global_attn_every_n_layers", 3)
    kinds = keys.each("layer_types", (FULL, SLIDING), [SLIDING if at % every else FULL for at in range(count)])
    reach = keys.size("local_attention", 128) // 2
    whole = keys.number("global_rope_theta", 160_000.0)
    near = keys.number("local_rope_theta", 10_000.0)
    layers = {
        FULL: Layer(read_rotary(keys, head_dim, kind=FULL, theta=whole, whole=True)),
        SLIDING: Layer(read_rotary(keys, head_dim, kind=SLIDING, theta=near, whole=True), reach),
    }
    return tuple(layers[kind] for kind in kinds)


_BASE = {
    "tokens": "embeddings.tok_embeddings",
    "embedding_norm": "embeddings.norm",
    "attention_norm": "layers.{}.attn_norm",
    "qkv": "layers.{}.attn.Wqkv",
    "out": "layers.{}.attn.Wo",
    "mlp_norm": "layers.{}.mlp_norm",
    "up": "layers.{}.mlp.Wi",
    "down": "layers.{}.mlp.Wo",
    "norm": "final_norm",
}
_HEAD = {"head.dense": "head.dense", "head.norm": "head.norm", "head.scores": "classifier"}


def names(config: Config) -> dict[str, str]:
    """What its checkpoint calls the tensors: of a model that scores, under the name of what is below its head."""
    prefix = "" if _GGUF_HEAD in config else "model."
    return {what: prefix + stem for what, stem in _BASE.items()} | _HEAD if scores(config) else _BASE


_GGUF_HEAD = "has cls.output"
"""A key of a config that was made of a GGUF file."""
_GGUF_POOLINGS = {1: "mean", 2: "cls"}
_GGUF_LAYER = "blk.{}."


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """Which layers see everything may be a list of its own; a head without a pooling takes the mean, as llama.cpp has it."""
    every = config.pop("global_attn_every_n_layers", 3)
    each = {"layer_types": [SLIDING if near else FULL for near in every]} if isinstance(every, list) else {}
    whole = config | (each or {"global_attn_every_n_layers": every})
    if not config[_GGUF_HEAD]:
        return whole | {"architectures": [NAME]}
    kind = config.get("classifier_pooling", 1)
    pooling = {"classifier_pooling": _GGUF_POOLINGS.get(kind, f"number {kind}")}
    return ranking(whole) | pooling | {"architectures": ["ModernBert" + SCORES]}


GGUF = GgufTable(
    architecture="modern-bert",
    tensors={
        "token_embd": _BASE["tokens"],
        "token_embd_norm": _BASE["embedding_norm"],
        "output_norm": _BASE["norm"],
        _GGUF_LAYER + "attn_norm": _BASE["attention_norm"],
        _GGUF_LAYER + "attn_qkv": _BASE["qkv"],
        _GGUF_LAYER + "attn_output": _BASE["out"],
        _GGUF_LAYER + "ffn_norm": _BASE["mlp_norm"],
        _GGUF_LAYER + "ffn_up": _BASE["up"],
        _GGUF_LAYER + "ffn_down": _BASE["down"],
        "cls": _HEAD["head.dense"],
        "cls.norm": _HEAD["head.norm"],
        "cls.output": _HEAD["head.scores"],
    },
    required={
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.layer_norm_epsilon": "norm_eps",
    },
    optional={
        "attention.sliding_window": "local_attention",
        "rope.freq_base": "global_rope_theta",
        "rope.freq_base_swa": "local_rope_theta",
    },
    other={
        "attention.sliding_window_pattern": "global_attn_every_n_layers",
        "hidden_activation": "hidden_activation",
        "classifier.output_labels": "output_labels",
        "classifier.pooling_type": "classifier_pooling",
    },
    flags={
        _GGUF_HEAD: "cls.output.weight",
        "classifier_bias": "cls.bias",
        "norm_bias": "token_embd_norm.bias",
        "attention_bias": "blk.0.attn_output.bias",
        "mlp_bias": "blk.0.ffn_down.bias",
    },
    pooling=1,
    refused={"attention.causal": "only one in which all tokens see each other is read"},
    finish=_finish,
)

FAMILY = encoder_family(
    architectures=ARCHITECTURES,
    model_types=("modernbert",),
    read=read,
    names=names,
    gguf=GGUF,
    ignored=(r"head\.(dense|norm)\.(weight|bias)",),
)
