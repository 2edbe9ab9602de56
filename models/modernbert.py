"""ModernBERT: embedders and rerankers over it, as those of gte, Nomic and Granite; must not know files or jax.

A BERT but for norms before attention and MLP, a gated MLP, positions by rotary, and attention that sees half of
`local_attention` to either side in two of three layers. https://arxiv.org/abs/2412.13663.
"""

from models.config import MOST_LAYERS, Keys, architectures
from models.dense.record import FULL, SLIDING
from models.encoder.family import SCORES, encoder_family, labels, pooling_of, scores
from models.encoder.record import Classifier, Encoder, HeadKind, Kind, Layer
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
    return {what: "model." + stem for what, stem in _BASE.items()} | _HEAD if scores(config) else _BASE


FAMILY = encoder_family(
    architectures=ARCHITECTURES,
    model_types=("modernbert",),
    read=read,
    names=names,
)
