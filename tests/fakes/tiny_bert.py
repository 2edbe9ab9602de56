"""A folder with a BERT of some thousand random weights and a WordPiece tokenizer, as sentence-transformers writes one."""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from models.bert import GGUF
from models.registry import build_embedder
from neuron_jax.weights.checkpoint import open_checkpoint
from tests.fakes.weight_files import random_tensors, write_gguf, write_safetensors

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "##ing", "cat"]
CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": len(VOCAB),
    "max_position_embeddings": 64,
}
SCORES: dict[str, Any] = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
"""What makes a reranker of it."""


def tokenizer() -> Tokenizer:
    """As BERT's, of which every letter is a token."""
    made = Tokenizer(models.WordPiece(vocab={token: at for at, token in enumerate(VOCAB)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def write_tiny_bert(folder: Path, *, pooling: str = "mean_tokens", normalize: bool = True, **changes: Any) -> Path:
    """Writes everything, and returns `folder`."""
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if "id2label" not in config:
        write_modules(folder, pooling, normalize=normalize)
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    write_safetensors(folder / "model.safetensors", random_tensors(build_embedder(config, dtype=jnp.float32)))
    return folder


def write_modules(folder: Path, pooling: str, *, normalize: bool) -> None:
    """modules.json and what it names, as sentence-transformers saves them beside a model."""
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    listed = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" * (at > 0), "type": f"sentence_transformers.models.{kind}"}
        for at, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))


def write_tiny_gguf(file: Path, folder: Path, *, pooling: int) -> None:
    """The model of such a folder as llama.cpp's converter writes it."""
    own = {stem: theirs for theirs, stem in GGUF.tensors.items()}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    header = {
        "general.architecture": "bert",
        "bert.block_count": CONFIG["num_hidden_layers"],
        "bert.context_length": CONFIG["max_position_embeddings"],
        "bert.embedding_length": CONFIG["hidden_size"],
        "bert.feed_forward_length": CONFIG["intermediate_size"],
        "bert.attention.head_count": CONFIG["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": [
            token if token in special else token[2:] if token.startswith("##") else "\u2581" + token for token in VOCAB
        ],
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in VOCAB],
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    }
    tensors = {}
    with open_checkpoint(folder) as checkpoint:
        for name in checkpoint.tensors:
            values = np.asarray(checkpoint.read(name), np.float32)
            stem, _, kind = re.sub(r"\.\d+\.", ".{}.", name, count=1).rpartition(".")
            layer = re.search(r"\.(\d+)\.", name)
            theirs = own[stem].format(layer[1] if layer else "")
            tensors[f"{theirs}.{kind}"] = (0, values.shape, values.tobytes())
    write_gguf(file, header, tensors)
