"""A folder with a BERT of some thousand random weights and a WordPiece tokenizer, as sentence-transformers writes one."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from models.registry import build_embedder
from tests.fakes.weight_files import random_tensors, write_safetensors

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
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    listed = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" * (at > 0), "type": f"sentence_transformers.models.{kind}"}
        for at, kind in enumerate(modules)
    ]
    if "id2label" not in config:
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", "sep_token": "[SEP]"}))
    write_safetensors(folder / "model.safetensors", random_tensors(build_embedder(config, dtype=jnp.float32)))
    return folder
