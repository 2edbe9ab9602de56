"""Strings to ids and back for one model; knows tokenizer descriptions, must not know files or templates.

The vocabulary's bytes are listed once at load, so decoding needs no library call and is exact for any split of the ids.
Text is never cleaned up after decoding (no space is removed before punctuation): what the model wrote is what is shown.
"""

import json as jsonlib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import tokenizers

from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.gguf_vocab import GgufVocab, from_gguf
from neuron_jax.text.vocab_bytes import strips_leading_space, token_bytes


def load_tokenizer(*, json: bytes | None, gguf: Mapping[str, Any] | None, config: Mapping[str, Any]) -> "Tokenizer":
    """A tokenizer from tokenizer.json's bytes or, without them, from the `tokenizer.ggml.*` keys of a GGUF header.

    `config` is tokenizer_config.json, or {}: it names the begin and end tokens. Raises TokenizerError.
    """
    if json is not None:
        return Tokenizer(_parse(json), bos_token=_named(config, "bos_token"), eos_token=_named(config, "eos_token"))
    if gguf is None:
        raise TokenizerError("the model has no tokenizer: neither tokenizer.json nor a GGUF header with a vocabulary")
    vocab = GgufVocab.read(gguf)
    return Tokenizer(
        from_gguf(vocab),
        bos_token=_named(config, "bos_token") or vocab.named("bos"),
        eos_token=_named(config, "eos_token") or vocab.named("eos"),
    )


class Tokenizer:
    """Immutable after construction and safe to share; ids are the model's own."""

    def __init__(self, backend: tokenizers.Tokenizer, *, bos_token: str | None, eos_token: str | None) -> None:
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._backend = backend
        self._description: Mapping[str, Any] = jsonlib.loads(backend.to_str())
        self._special = {row["content"]: row for row in self._description["added_tokens"] if row["special"]}
        self._bytes = token_bytes(self._description, backend.get_vocab())
        self.special_ids = frozenset(row["id"] for row in self._special.values())
        self.strips_leading_space = strips_leading_space(self._description)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a model's logits may be wider than this (padding)."""
        return len(self._bytes)

    @property
    def special_tokens(self) -> frozenset[str]:
        """The text of every special token."""
        return frozenset(self._special)

    def id_of(self, token: str) -> int | None:
        """The id of one token by its exact name."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def encode(self, text: str, *, add_special: bool) -> list[int]:
        """Ids of `text`, in which special tokens are recognised by their names, as every server does for raw prompts.

        `add_special` adds what the tokenizer puts around a raw prompt (a begin token); a chat template writes its own.
        """
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special).ids
        return ids

    def encode_marked(self, text: str, *, mark: str) -> list[int]:
        """As `encode(text, add_special=False)`, but a special token's name with `mark` in it is plain text.

        `mark` is one character that is taken out again; see `neuron_jax.text.prompt`, which puts it there.
        """
        ids: list[int] = []
        for part in self._parts(text):
            token = self._special.get(part)
            ids += [token["id"]] if token else self._plain(part.replace(mark, ""), first=not ids)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. SentencePiece's leading space is taken off."""
        joined = b"".join(self.piece(id_, skip_special=skip_special) for id_ in ids)
        text = joined.decode("utf-8", "replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def piece(self, id_: int, *, skip_special: bool = False) -> bytes:
        """The bytes of one token, maybe a part of a character. Ids of a padded vocabulary's tail have none."""
        assert id_ >= 0, f"token id {id_}"
        if id_ >= len(self._bytes) or (skip_special and id_ in self.special_ids):
            return b""
        return self._bytes[id_]

    def _parts(self, text: str) -> Iterator[str]:
        """`text` cut at its special tokens, which take the spaces they own with them; no empty parts."""
        parts = self.special_names.split(text)
        for at, part in enumerate(parts):
            before = self._special.get(parts[at - 1]) if at else None
            after = self._special.get(parts[at + 1]) if at + 1 < len(parts) else None
            kept = part.lstrip() if before and before["rstrip"] else part
            kept = kept.rstrip() if after and after["lstrip"] else kept
            if kept:
                yield kept

    def _plain(self, text: str, *, first: bool) -> list[int]:
        backend = self._verbatim if first else self._inner
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def special_names(self) -> re.Pattern[str]:
        """Finds special tokens by name, the longest first, as one group."""
        names = sorted(self._special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})" if names else r"(?!)()")

    @cached_property
    def _verbatim(self) -> tokenizers.Tokenizer:
        """A copy that takes special tokens' names for plain text. The flag of the shared one must not be flipped."""
        return _verbatim(self._description)

    @cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """The same for text that does not begin the prompt, where "first" means the prompt's first word only."""
        return _verbatim(_without_first_prefix(self._description))


def _verbatim(description: Mapping[str, Any]) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer.from_str(jsonlib.dumps(description))
    backend.encode_special_tokens = True
    return backend


def _without_first_prefix(node: Any) -> Any:
    """A tokenizer.json whose Metaspace steps with `prepend_scheme: first` never prepend."""
    if isinstance(node, list):
        return [_without_first_prefix(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Metaspace" and node.get("prepend_scheme") == "first":
        return {**node, "prepend_scheme": "never"}
    return {key: value if key == "model" else _without_first_prefix(value) for key, value in node.items()}


def _parse(json: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(json)
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error


def _named(config: Mapping[str, Any], key: str) -> str | None:
    """A token of tokenizer_config.json, which is a string or a record with `content`."""
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"tokenizer_config.json: {key} is {value!r}; a string or a record with content is allowed")
    return value
