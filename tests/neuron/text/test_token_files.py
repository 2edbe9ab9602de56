"""Tokenizers from other files than tokenizer.json: SentencePiece's models, tekken.json and tiktoken's lines."""

import gzip
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer

MODELS: Mapping[str, Any] = json.loads(
    gzip.decompress((Path(__file__).parents[2] / "data" / "sentencepiece.json.gz").read_bytes())
)
BYTES = [bytes([byte]) for byte in range(256)]
RANKS = [*BYTES, b"he", b"ll", b"hell", b" w", b"or", b"o w", b"world", b"hello", b" wor", b"  "]
"""By rank. "hello" cannot be joined from two tokens, and is a word that is taken whole."""
TEXT = "hello world, hello\n\n  or 12345 hellow é"


def of(name: str, content: bytes, **config: Any) -> Tokenizer:
    return load_tokenizer(json=None, gguf=None, config=config, file=(name, content))


def joined(word: bytes, ids: Mapping[bytes, int]) -> list[int]:
    """tiktoken's rule, by the letter: the whole word, else the two neighbours whose joining ranks lowest, again and again."""
    if word in ids:
        return [ids[word]]
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [(ids[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not pairs:
            return [ids[part] for part in parts]
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.parametrize("name", MODELS)
def test_sentence_piece_models_give_the_ids_of_their_library(name: str) -> None:
    """BPE and unigrams, with and without bytes, a first space and rules for characters (tests/data/README.md)."""
    tokenizer = of("tokenizer.model", b64decode(MODELS[name]["model"]))
    own = () if name == "bpe-without-prefix" else (" ", "\t")  # a space of the text's own stands for the first space
    for text, ids in MODELS[name]["cases"]:
        if not text.startswith(own) or name == "unigram":
            assert tokenizer.encode(text, add_special=False) == ids, repr(text)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_a_config_adds_tokens_to_a_sentence_piece_model() -> None:
    """Those after its last, and a gap between that nobody means."""
    config = {"added_tokens_decoder": {"425": {"content": "<|end|>", "special": True}}}
    tokenizer = of("tokenizer.model", b64decode(MODELS["bpe"]["model"]), **config)

    assert tokenizer.vocab_size == 426
    assert tokenizer.encode("<|end|>", add_special=False)[-1] == 425
    assert 425 in tokenizer.special_ids


def tekken(**changes: Any) -> bytes:
    vocab = [{"rank": rank, "token_bytes": b64encode(token).decode()} for rank, token in enumerate(RANKS)]
    config = {"pattern": r" ?[a-z]+|\d|\s+(?!\S)|\s+|[^a-z\s]+", "default_vocab_size": 20 + len(RANKS) - 1}
    names = [{"rank": rank, "token_str": name} for rank, name in enumerate(("<unk>", "<s>", "</s>"))]
    return json.dumps(
        {"config": config | {"default_num_special_tokens": 20}, "vocab": vocab, "special_tokens": names} | changes
    ).encode()


def test_tekken_counts_its_special_tokens_first() -> None:
    """Ranks begin after them, and the vocabulary ends where the config says: the last of the ranks is no token."""
    tokenizer = of("tekken.json", tekken())
    ids = {token: 20 + rank for rank, token in enumerate(RANKS[:-1])}
    words = [
        b"hello",
        b" world",
        b",",
        b" hello",
        b"\n\n ",
        b" or",
        b" ",
        *b"1 2 3 4 5".split(),
        b" hellow",
        b" ",
        "é".encode(),
    ]
    expected = [id_ for word in words for id_ in joined(word, ids)]

    assert tokenizer.encode(TEXT, add_special=False) == expected
    assert tokenizer.decode(expected, skip_special=False) == TEXT
    assert tokenizer.encode("</s>or", add_special=True) == [1, 2, ids[b"or"]]
    assert tokenizer.id_of("<SPECIAL_7>") == 7


def test_an_old_tekken_has_the_names_of_its_time() -> None:
    """Without a list of special tokens."""
    assert of("tekken.json", tekken(special_tokens=None)).id_of("[INST]") == 3


@pytest.mark.parametrize(
    ("name", "digits"), [("tokenizer.model", [b"123", b"45"]), ("qwen.tiktoken", [*BYTES[0x31:0x36]])]
)
def test_tiktoken_lines(name: str, digits: list[bytes]) -> None:
    """A word at a time by Llama 3's pattern, or that of the first Qwen; special tokens come from tokenizer_config.json."""
    lines = b"".join(b64encode(token) + b" %d\n" % rank for rank, token in enumerate(RANKS))
    config = {"bos_token": "<|begin|>", "added_tokens_decoder": {"300": {"content": "<|begin|>", "special": True}}}
    tokenizer = of(name, lines, **config)
    ids = {token: rank for rank, token in enumerate(RANKS)}
    words = [b"hello", b" world", b",", b" hello", b"\n\n", b" ", b" or", b" ", *digits, b" hellow", " é".encode()]

    assert tokenizer.encode(TEXT, add_special=True) == [300, *(id_ for word in words for id_ in joined(word, ids))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tekken.json", b"{}", "not a tekken.json"),
        ("tekken.json", b"\xff", "not a tekken.json"),
        ("tokenizer.model", b"", "not a whole SentencePiece model"),
        ("tokenizer.model", b"\x0a\xff", "not a SentencePiece model"),
        ("tokenizer.model", b"AA== 0\nAQ== x\n", "not a tiktoken file"),
        ("tokenizer.model", b64decode(MODELS["bpe"]["model"])[:2000], "not a whole SentencePiece model"),
    ],
)
def test_files_that_are_none_are_told(name: str, content: bytes, message: str) -> None:
    """Empty, cut and other files."""
    with pytest.raises(TokenizerError, match=message):
        of(name, content)
