"""A tokenizer out of a file other than tokenizer.json: tekken.json, tiktoken's, SentencePiece's; must not know folders."""

import re
from collections.abc import Mapping
from typing import Any

import tokenizers

from neuron_jax.text.byte_ranks import from_tekken, from_tiktoken
from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.gguf_vocab import CONTROL, USER_DEFINED, GgufVocab, from_gguf
from neuron_jax.text.sentence_piece import header_of, with_added

_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
"""How such a file begins; SentencePiece's begin with a byte that is none of these."""
_MOST = 1 << 24


def from_file(
    name: str, content: bytes, config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, str | None, str | None]:
    """The tokenizer, and its begin and end tokens where the file names them; `config` is tokenizer_config.json.

    Raises TokenizerError.
    """
    if name == "tekken.json":
        return from_tekken(content), "<s>", "</s>"
    added = _added(config)
    if _TIKTOKEN.match(content):
        first = named(config, "bos_token") if config.get("add_bos_token", True) else None
        return from_tiktoken(content, added, qwen="qwen" in name, first=first), None, None
    kinds = {id_: (text, CONTROL if special else USER_DEFINED) for id_, (text, special) in added.items()}
    asked = {key: config[key] for key in ("add_bos_token", "add_eos_token") if isinstance(config.get(key), bool)}
    vocab = GgufVocab.read(with_added(header_of(content), kinds) | asked)
    return from_gguf(vocab, space="first"), vocab.named("bos"), vocab.named("eos")


def named(config: Mapping[str, Any], key: str) -> str | None:
    """A token of tokenizer_config.json, which is a string or a record with `content`. Raises TokenizerError."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"tokenizer_config.json: {key} is {value!r}; a string or a record with content is allowed")
    return value


def _added(config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Text, and whether it is special, of the tokens by id that the config adds to the file's."""
    rows = config.get("added_tokens_decoder") or {}
    try:
        found = {int(id_): (row["content"], bool(row.get("special"))) for id_, row in rows.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder has no tokens by id: {error!r}") from error
    if not all(isinstance(text, str) and 0 <= id_ < _MOST for id_, (text, _) in found.items()):
        raise TokenizerError("tokenizer_config.json: added_tokens_decoder has ids or tokens that are none")
    return found
