"""Small tokenizers of both kinds, as the header of a GGUF file describes them; knows no files."""

from collections.abc import Mapping
from typing import Any

from neuron_jax.text.gguf_vocab import GgufVocab, from_gguf
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|python_tag|>")


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for every byte, by byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def byte_level_header(pre: str = "smollm", **keys: Any) -> Mapping[str, Any]:
    """Special tokens 0..2, then a token per byte, then a few merges; "<think>" is a user's token."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "12 3", "' ll", "L L", "' LL"]
    tokens = [*SPECIAL, *byte_alphabet(), *(merge.replace(" ", "") for merge in merges), "<think>"]
    types = [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL) - 1) + [4]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def sentence_piece_header(**keys: Any) -> Mapping[str, Any]:
    """`<unk>`, `<s>`, `</s>`, the bytes, and words over a small alphabet with scores as training leaves them."""
    words = ["\u2581h", "he", "ll", "llo", "hello", "\u2581hello", "\u2581w", "or", "ld", "\u2581wor", "\u2581world"]
    letters = ["\u2581", *"helowrd.n"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    scores = [0.0] * 259 + [-float(at) for at in range(len(words) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def byte_level(pre: str = "smollm", **keys: Any) -> Tokenizer:
    return load_tokenizer(json=None, gguf=byte_level_header(pre, **keys), config={})


def byte_level_json() -> bytes:
    """The same vocabulary as a tokenizer.json."""
    return from_gguf(GgufVocab.read(byte_level_header())).to_str().encode()


def sentence_piece(**keys: Any) -> Tokenizer:
    return load_tokenizer(json=None, gguf=sentence_piece_header(**keys), config={})
