"""llama.cpp's own cases for its vocabularies, each held to the very ids: WordPiece, SentencePiece, BPE with pre-tokenizers."""

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.text.tokenizer import load_tokenizer
from neuron_jax.weights.gguf import GgufFile

FOLDER = os.environ.get("LLAMA_CPP_MODELS", "")
"""The folder `models` of llama.cpp's sources, with ggml-vocab-*.gguf and the .inp and .out of each."""
SEPARATOR = "\n__ggml_vocab_test__\n"
SMALL: Mapping[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parents[2] / "data" / "vocabularies.json.gz").read_bytes())
)


@pytest.mark.parametrize("name", SMALL)
def test_texts_have_the_ids_that_llama_cpp_says(name: str) -> None:
    """White space, digits, contractions, scripts and emoji, with the part of each vocabulary that they need."""
    tokenizer = load_tokenizer(json=None, gguf=SMALL[name]["header"], config={})
    for text, ids in SMALL[name]["cases"]:
        assert tokenizer.encode(text, add_special=False) == ids, repr(text)


@pytest.mark.parametrize("name", [name for name in SMALL if name != "bert-bge"])
def test_ids_give_their_text_back(name: str) -> None:
    """All but BERT's, which knows no capitals and no spaces."""
    tokenizer = load_tokenizer(json=None, gguf=SMALL[name]["header"], config={})
    for text, ids in SMALL[name]["cases"]:
        assert tokenizer.decode(ids, skip_special=False) == text


def test_bert_puts_its_tokens_around_a_text() -> None:
    """[CLS] before and [SEP] behind, as its header names them."""
    header = SMALL["bert-bge"]["header"]
    tokenizer = load_tokenizer(json=None, gguf=header, config={})
    ids = tokenizer.encode("Hello", add_special=True)

    assert [header["tokens"][id_] for id_ in (ids[0], ids[-1])] == ["[CLS]", "[SEP]"]


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="LLAMA_CPP_MODELS names no folder")
@pytest.mark.parametrize("path", sorted(Path(FOLDER or ".").glob("ggml-vocab-*.gguf")), ids=lambda path: path.stem)
def test_whole_vocabularies(path: Path) -> None:
    """Every vocabulary loads, and those with cases give their ids."""
    with GgufFile(path) as file:
        header = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.ggml.")}
    tokenizer = load_tokenizer(json=None, gguf=header, config={})
    asked, said = path.with_name(path.name + ".inp"), path.with_name(path.name + ".out")
    if not asked.exists():
        return
    texts = asked.read_text().removesuffix(SEPARATOR).split(SEPARATOR)
    for text, line in zip(texts, said.read_text().splitlines(), strict=True):
        assert tokenizer.encode(text, add_special=False) == [int(word) for word in line.split()], repr(text)
