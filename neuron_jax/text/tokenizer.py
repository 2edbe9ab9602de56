"""Strings to ids and back for one model; knows tokenizer descriptions, must not know files or templates.

The vocabulary's bytes are listed once at load, so decoding needs no library call and is exact for any split of the ids.
Text is never cleaned up after decoding (no space is removed before punctuation): what the model wrote is what is shown.
"""

import json as jsonlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from neuron_jax.text.errors import TokenizerError, TooManyTokensError
from neuron_jax.text.gguf_vocab import GgufVocab, from_gguf
from neuron_jax.text.parts import PartEncoder, TokenCount
from neuron_jax.text.prompt import Rendered, names_pattern
from neuron_jax.text.spelling import USUAL_CHARS, spelling_of
from neuron_jax.text.token_files import from_file, named
from neuron_jax.text.vocab_bytes import strips_leading_space, token_bytes

CHARS_OF_TOKEN = 32
"""Characters of a text that are read for each token that is kept of it: more than any ordinary text needs."""


def load_tokenizer(
    *,
    json: bytes | None,
    gguf: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    file: tuple[str, bytes] | None = None,
) -> "Tokenizer":
    """A tokenizer from tokenizer.json's bytes or, without them, from the `tokenizer.ggml.*` keys of a GGUF header or from
    another `file`, its name and its bytes (see `neuron_jax.text.token_files`).

    `config` is tokenizer_config.json, or {}: it names the begin and end tokens. Raises TokenizerError.
    """
    bos, eos = named(config, "bos_token"), named(config, "eos_token")
    if json is not None:
        return Tokenizer(_parse(json), bos_token=bos, eos_token=eos)
    if file is not None:
        backend, first, last = from_file(*file, config)
        return Tokenizer(backend, bos_token=bos or first, eos_token=eos or last)
    if gguf is None:
        raise TokenizerError("the model has no tokenizer: neither tokenizer.json nor a GGUF header with a vocabulary")
    vocab = GgufVocab.read(gguf)
    return Tokenizer(
        from_gguf(vocab),
        bos_token=bos or vocab.named("bos"),
        eos_token=eos or vocab.named("eos"),
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
        self.spelling = spelling_of(self._description, self._bytes)
        self._encoder = PartEncoder(backend, self._description)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a model's logits may be wider than this (padding)."""
        return len(self._bytes)

    @property
    def pieces(self) -> Sequence[bytes]:
        """The bytes of every token, by id."""
        return self._bytes

    @property
    def special_tokens(self) -> frozenset[str]:
        """The text of every special token."""
        return frozenset(self._special)

    def id_of(self, token: str) -> int | None:
        """The id of one token by its exact name."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def encode(self, text: str, *, add_special: bool, most: int | None = None) -> list[int]:
        """Ids of `text`, in which special tokens are recognised by their names, as every server does for raw prompts.

        `add_special` adds what the tokenizer puts around a raw prompt (a begin token); a chat template writes its own.
        Raises TooManyTokensError where there are more than `most`, as early as it is certain, and UncutTextError.
        """
        self._refuse_hopeless(text, most)
        count = TokenCount(most, len(text))
        before, after = self._around if add_special else ([], [])
        count.tokens = len(before) + len(after)
        ids = [*before, *self._encoder.encode(text, count), *after]
        count.close()
        return ids

    def encode_plain(self, text: str, *, most: int | None = None) -> list[int]:
        """As `encode(text, add_special=False)`, but names of special tokens are plain text. Raises as it does."""
        self._refuse_hopeless(text, most)
        count = TokenCount(most, len(text))
        ids = self._verbatim.encode(text, count)
        count.close()
        return ids

    def encode_start(self, text: str, most: int) -> list[int]:
        """As `encode` with what is put around a prompt, but of a text with more than `most` tokens only the first ones.

        Raises TooManyTokensError for a text that is too long even to be cut: so much of it may stand for nothing.
        """
        before, after = self._around
        room = max(0, most - len(before) - len(after))
        start = text[: CHARS_OF_TOKEN * (room + 1)]
        ids = self._encoder.encode(start, TokenCount(None, len(start)))
        if len(start) < len(text) and len(ids) <= room:
            return self.encode(text, add_special=True, most=most)
        return [*before, *ids[:room], *after]

    def encode_pair(self, first: str, second: str, *, most: int | None = None) -> tuple[list[int], int]:
        """Ids of two texts as the tokenizer joins them, and the place of the first token that it counts as the second's;
        0 where it does not tell them apart. Raises TooManyTokensError where there are more than `most`, and UncutTextError.
        """
        before, between, after, apart = self._around_pair
        left = None if most is None else max(0, most - len(before) - len(between) - len(after))
        ids = [*before, *self._joined(first, most, left), *between]
        place = len(ids) if apart else 0
        left = None if left is None else left - len(ids) + len(before) + len(between)
        return [*ids, *self._joined(second, most, left), *after], place

    def _joined(self, text: str, most: int | None, left: int | None) -> list[int]:
        """Bare ids, at most `left`. What is too long is told of against `most`, with what stands around it."""
        try:
            return self.encode(text, add_special=False, most=left)
        except TooManyTokensError as error:
            assert most is not None, "nothing was bounded"
            assert left is not None, "nothing was bounded"
            raise TooManyTokensError(error.tokens + most - left, exact=error.exact) from error

    def encode_rendered(self, rendered: Rendered, *, most: int | None = None) -> list[int]:
        """Ids of a chat's prompt. Raises TooManyTokensError and UncutTextError."""
        if rendered.mark:
            return self.encode_marked(rendered.text, mark=rendered.mark, most=most)
        return self.encode(rendered.text, add_special=False, most=most)

    def encode_marked(self, text: str, *, mark: str, most: int | None = None) -> list[int]:
        """As `encode(text, add_special=False)`, but a special token's name with `mark` in it is plain text.

        `mark` is one character that is taken out again; see `neuron_jax.text.prompt`, which puts it there.
        """
        self._refuse_hopeless(text, most, text.count(mark))
        count = TokenCount(most, len(text))
        ids: list[int] = []
        for part in self._parts(text):
            token = self._special.get(part)
            if token is None:
                ids += (self._inner if ids else self._verbatim).encode(part.replace(mark, ""), count)
            else:
                ids.append(token["id"])
                count.add(1, len(part))
        count.close()
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

    def _refuse_hopeless(self, text: str, most: int | None, marks: int = 0) -> None:
        if most is None:
            return
        least = self.spelling.least_tokens(text) - marks
        if least > most:
            raise TooManyTokensError(max(least, len(text) // USUAL_CHARS), exact=False)

    def _parts(self, text: str) -> Iterator[str]:
        """`text` cut at its special tokens, which take the spaces they own with them; no empty parts."""
        at, strips = 0, False
        for found in self._special_names.finditer(text):
            token = self._special[found[0]]
            yield from _stripped(text[at : found.start()], left=strips, right=token["lstrip"])
            yield found[0]
            at, strips = found.end(), token["rstrip"]
        yield from _stripped(text[at:], left=strips, right=False)

    @cached_property
    def _special_names(self) -> re.Pattern[str]:
        return names_pattern(sorted(self._special))

    @property
    def begin(self) -> Sequence[int]:
        """What is put before a raw prompt."""
        return self._around[0]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What is put before and after a raw prompt."""
        probe = "a"
        whole: list[int] = self._backend.encode(probe, add_special_tokens=True).ids
        inner: list[int] = self._backend.encode(probe, add_special_tokens=False).ids
        fits = (at for at in range(len(whole) - len(inner) + 1) if whole[at : at + len(inner)] == inner)
        at = next(fits, len(whole))
        return whole[:at], whole[at + len(inner) :]

    @cached_property
    def _around_pair(self) -> tuple[list[int], list[int], list[int], bool]:
        """What is put before, between and after two texts, and whether the second's tokens are marked as such."""
        probes = ("a", "b")
        whole = self._backend.encode(*probes, add_special_tokens=True)
        one, two = (self._backend.encode(probe, add_special_tokens=False).ids for probe in probes)
        first = next(at for at in range(len(whole.ids)) if whole.ids[at : at + len(one)] == one)
        then = first + len(one)
        second = next(at for at in range(then, len(whole.ids)) if whole.ids[at : at + len(two)] == two)
        after = whole.ids[second + len(two) :]
        return whole.ids[:first], whole.ids[then:second], after, whole.type_ids[second] == 1

    @cached_property
    def _verbatim(self) -> PartEncoder:
        """A copy that takes special tokens' names for plain text. The flag of the shared one must not be flipped."""
        return _verbatim(self._description)

    @cached_property
    def _inner(self) -> PartEncoder:
        """The same for text that does not begin the prompt, where "first" means the prompt's first word only."""
        return _verbatim(_without_first_prefix(self._description))


def _verbatim(description: Mapping[str, Any]) -> PartEncoder:
    backend = tokenizers.Tokenizer.from_str(jsonlib.dumps(description))
    backend.encode_special_tokens = True
    return PartEncoder(backend, description, verbatim=True)


def _stripped(text: str, *, left: bool, right: bool) -> Iterator[str]:
    """`text` without the white space that its neighbours take, unless nothing is left."""
    text = text.lstrip() if left else text
    text = text.rstrip() if right else text
    if text:
        yield text


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
        backend = tokenizers.Tokenizer.from_buffer(json)
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise TokenizerError(f"tokenizer.json cannot be read: {error}") from error
    backend.no_truncation()  # what its authors trained with; a prompt is refused, never cut
    backend.no_padding()
    return backend
