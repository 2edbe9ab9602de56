"""BERT and XLM-RoBERTa: MiniLM, BGE and E5 with their rerankers, multilingual or not; must not know files or jax.

Read from top to bottom. What an encoder may differ in is listed in `models.encoder.record`. Bidirectional, learned
positions, a norm behind attention and behind the MLP. XLM-RoBERTa is a BERT whose positions begin behind its padding
token's number, and which tells no kinds of tokens apart. Tried against transformers: all-MiniLM-L6-v2, and small random
models of both. https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/1911.02116.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys, architectures
from models.encoder.family import FIRST, SCORES, encoder_family, labels, pooling_of, ranking, scores
from models.encoder.record import Classifier, Encoder, Kind, Layer
from models.gguf import GgufTable
from models.spec import Config

BERT, ROBERTA = "Bert", "XLMRoberta"
ARCHITECTURES = tuple(name + end for name in (BERT, ROBERTA, "Roberta") for end in ("Model", SCORES))
_ROBERTAS = ("xlm-roberta", "roberta")
_ACTIVATIONS: dict[str, Kind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read(config: Config) -> Encoder:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    kind, ranks = _kind(config), scores(config)
    name = next(iter(architectures(config)), kind + "Model")
    keys = Keys(config, name)
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    positions = keys.size("max_position_embeddings")
    first = 0 if kind == BERT else keys.size("pad_token_id", 1, least=-1) + 1
    keys.choice("position_embedding_type", {"absolute": None}, "absolute")
    classifier = Classifier(labels(keys)) if ranks else None
    if config.get(_GGUF_HEAD) and not config[_GGUF_DENSE]:
        keys.refuse(
            "of its head only cls.output is there: of a BERT that ranks llama.cpp's converter leaves out the rest"
        )
    layer = Layer()
    found = Encoder(
        architecture=name,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        heads=heads,
        max_positions=max(positions - first, 1),
        epsilon=keys.number("layer_norm_eps", 1e-12),
        stack=(layer,) * keys.size("num_hidden_layers", most=MOST_LAYERS),
        pooling=FIRST if ranks else pooling_of(keys),
        activation=keys.choice("hidden_act", _ACTIVATIONS, "gelu"),
        positions=positions,
        first_position=first,
        token_types=keys.size("type_vocab_size", 2),
        classifier=classifier,
    )
    if hidden % heads:
        keys.refuse(f"hidden_size {hidden} does not divide among {heads} attention heads")
    keys.check()
    return found


def _kind(config: Config) -> str:
    named = architectures(config)
    if named:
        return BERT if named[0].startswith(BERT) else ROBERTA
    return ROBERTA if config.get("model_type") in _ROBERTAS else BERT


_LAYER = "encoder.layer.{}."
_BASE = {
    "tokens": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "q": _LAYER + "attention.self.query",
    "k": _LAYER + "attention.self.key",
    "v": _LAYER + "attention.self.value",
    "out": _LAYER + "attention.output.dense",
    "attention_norm": _LAYER + "attention.output.LayerNorm",
    "up": _LAYER + "intermediate.dense",
    "down": _LAYER + "output.dense",
    "mlp_norm": _LAYER + "output.LayerNorm",
}
_HEADS = {
    BERT: {"head.dense": "bert.pooler.dense", "head.scores": "classifier"},
    ROBERTA: {"head.dense": "classifier.dense", "head.scores": "classifier.out_proj"},
}


def names(config: Config) -> dict[str, str]:
    """What its checkpoint calls the tensors: of a model that scores, under the name of what is below its head."""
    if not scores(config):
        return _BASE
    if config.get(_GGUF_HEAD):
        return {**_BASE, "head.dense": "cls", "head.scores": "cls.output"}
    kind = _kind(config)
    prefix = "bert." if kind == BERT else "roberta."
    return {what: prefix + stem for what, stem in _BASE.items()} | _HEADS[kind]


_GGUF_HEAD, _GGUF_DENSE = "has cls.output", "has cls"
"""Keys of a config that was made of a GGUF file: it ranks, and the head's tensors have the file's names."""


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """The positions are those of tokens, without what an XLM-RoBERTa has before them."""
    if not config[_GGUF_HEAD]:
        return config | {"architectures": [BERT + "Model"]}
    return ranking(config) | {"architectures": [ROBERTA + SCORES], "pad_token_id": -1}


_GGUF_LAYER = "blk.{}."
GGUF = GgufTable(
    architecture="bert",
    tensors={
        "token_embd": _BASE["tokens"],
        "position_embd": _BASE["positions"],
        "token_types": _BASE["types"],
        "token_embd_norm": _BASE["embedding_norm"],
        _GGUF_LAYER + "attn_q": _BASE["q"],
        _GGUF_LAYER + "attn_k": _BASE["k"],
        _GGUF_LAYER + "attn_v": _BASE["v"],
        _GGUF_LAYER + "attn_output": _BASE["out"],
        _GGUF_LAYER + "attn_output_norm": _BASE["attention_norm"],
        _GGUF_LAYER + "ffn_up": _BASE["up"],
        _GGUF_LAYER + "ffn_down": _BASE["down"],
        _GGUF_LAYER + "layer_output_norm": _BASE["mlp_norm"],
    },
    required={
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.layer_norm_epsilon": "layer_norm_eps",
    },
    other={"classifier.output_labels": "output_labels"},
    flags={_GGUF_HEAD: "cls.output.weight", _GGUF_DENSE: "cls.weight"},
    pooling=1,
    refused={"attention.causal": "only one in which all tokens see each other is read"},
    finish=_finish,
)

FAMILY = encoder_family(
    architectures=ARCHITECTURES,
    model_types=("bert", *_ROBERTAS),
    read=read,
    names=names,
    gguf=GGUF,
    ignored=(r"pooler\.dense\.(weight|bias)",),
)
