"""A tokenizer out of a GGUF header; knows the `tokenizer.ggml.*` keys, must not know the file they came from."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from attrs import frozen
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from neuron_jax.text.vocab_bytes import SPACE

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Token types of the format; 1 is normal, 5 unused."""

T = TypeVar("T")
Space = Literal["always", "first"]
KINDS = ("gpt2", "gemma4", "llama", "t5", "bert")
"""`tokenizer.ggml.model`."""


@frozen
class GgufVocab:
    """The header's keys, checked."""

    kind: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    header: Mapping[str, Any]

    @classmethod
    def read(cls, header: Mapping[str, Any]) -> "GgufVocab":
        """From keys with or without their `tokenizer.ggml.` prefix. Raises TokenizerError."""
        keys = {key.removeprefix("tokenizer.ggml."): value for key, value in header.items()}
        tokens = _listed(keys, "tokens", str)
        types = _listed(keys, "token_type", int) or (1,) * len(tokens)
        if not tokens or len(types) != len(tokens):
            raise TokenizerError(f"the GGUF header has {len(tokens)} tokens and {len(types)} token types")
        return cls(
            kind=str(keys.get("model")),
            pre=str(keys.get("pre", "default")),
            tokens=tokens,
            types=types,
            merges=_listed(keys, "merges", str),
            scores=_listed(keys, "scores", float),
            header=keys,
        )

    def named(self, name: str) -> str | None:
        """The token that `<name>_token_id` points to."""
        id_ = self.header.get(f"{name}_token_id")
        if id_ is None:
            return None
        if not isinstance(id_, int) or not 0 <= id_ < len(self.tokens):
            raise TokenizerError(f"{name}_token_id is {id_!r}; the GGUF header has {len(self.tokens)} tokens")
        return self.tokens[id_]

    def flag(self, name: str, *, default: bool) -> bool:
        return bool(self.header.get(name, default))

    def of_type(self, *types: int) -> list[str]:
        return [token for token, type_ in zip(self.tokens, self.types, strict=True) if type_ in types]


def _listed(keys: Mapping[str, Any], name: str, kind: type[T]) -> tuple[T, ...]:
    """The values of an array. Raises TokenizerError where they are others."""
    found = keys.get(name, ())
    if not isinstance(found, list | tuple) or not all(isinstance(value, kind) for value in found):
        raise TokenizerError(f"tokenizer.ggml.{name} is no list of {kind.__name__}")
    return tuple(found)


def from_gguf(vocab: GgufVocab, *, space: Space = "always") -> Tokenizer:
    """The tokenizer that the header describes. Raises TokenizerError.

    Where BPE has a space before a text, it is put after special tokens as well, as llama.cpp does, or before the "first" piece
    of a text only, as transformers does, and there only where the text does not begin with one.
    """
    match vocab.kind:
        case "gpt2" | "gemma4":
            pre = _pre_tokenizer(vocab)
            return _finish(vocab, _byte_level(vocab, pre) if pre.bytes else _spaced(vocab, pre), add_bos=pre.add_bos)
        case "llama":
            return _finish(vocab, _sentence_piece(vocab, space), add_bos=True)
        case "t5":
            return _finish(vocab, _unigram(vocab), add_eos=True)
        case "bert":
            return _finish(vocab, _word_piece(vocab), add_bos=True, add_eos=True)
    raise TokenizerError(f"the GGUF header has a {vocab.kind!r} vocabulary; understood are {', '.join(KINDS)}")


def _pre_tokenizer(vocab: GgufVocab) -> PreTokenizer:
    name = "gemma4" if vocab.kind == "gemma4" else vocab.pre
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(f"tokenizer.ggml.pre is {name!r}; these are understood: {known}")
    return PRE_TOKENIZERS[name]


def _splits(pre: PreTokenizer) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.splits]


def _byte_level(vocab: GgufVocab, pre: PreTokenizer) -> Tokenizer:
    """GPT-2's: bytes as printable characters, merged within words."""
    merges = [_pair(merge) for merge in vocab.merges]
    return byte_level(_bpe(vocab, merges, ignore_merges=pre.ignore_merges), pre)


def byte_level(model: models.BPE, pre: PreTokenizer) -> Tokenizer:
    """A tokenizer of such a model."""
    tokenizer = Tokenizer(model)
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_splits(pre), alphabet])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _spaced(vocab: GgufVocab, pre: PreTokenizer) -> Tokenizer:
    """Merges of text in which spaces are written as SentencePiece does."""
    merges = [_pair(merge) for merge in vocab.merges]
    tokenizer = Tokenizer(_bpe(vocab, merges, unk_token=_unknown(vocab), fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_splits(pre))
    tokenizer.decoder = _spaced_decoder(strip=False)
    return tokenizer


def _sentence_piece(vocab: GgufVocab, space: Space) -> Tokenizer:
    """SentencePiece's BPE: what scores highest is merged first, over words' ends as well."""
    _check_scores(vocab)
    prefix = vocab.flag("add_space_prefix", default=True)
    tokenizer = Tokenizer(_bpe(vocab, _merges(vocab), unk_token=_unknown(vocab), fuse_unk=True, byte_fallback=True))
    if prefix and space == "first":
        tokenizer.normalizer = normalizers.Sequence(_cleaning(vocab))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, space, split=False)
    else:
        first = [normalizers.Prepend(SPACE)] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*_cleaning(vocab), *first, normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = _spaced_decoder(strip=prefix)
    return tokenizer


def _unigram(vocab: GgufVocab) -> Tokenizer:
    """SentencePiece's unigrams: the most likely pieces of all."""
    _check_scores(vocab)
    unknown = _unknown(vocab)
    pieces = list(zip(vocab.tokens, vocab.scores, strict=True))
    try:
        model = models.Unigram(
            pieces, unk_id=vocab.tokens.index(unknown) if unknown else None, byte_fallback=bool(vocab.of_type(BYTE))
        )
    except Exception as error:  # the library raises bare Exception for every kind of bad vocabulary
        raise TokenizerError(f"the vocabulary cannot be used: {error}") from error
    tokenizer = Tokenizer(model)
    scheme = "always" if vocab.flag("add_space_prefix", default=True) else "never"
    tokenizer.normalizer = normalizers.Sequence(_cleaning(vocab))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(SPACE, scheme)])
    return tokenizer


def _word_piece(vocab: GgufVocab) -> Tokenizer:
    """BERT's: the longest tokens, from left to right. GGUF marks those that begin a word, not those that go on."""
    unknown = _unknown(vocab) or "[UNK]"
    ids = {token: id_ for id_, token in reversed(list(enumerate(vocab.tokens)))}
    longest = 101  # characters of a word that is looked up at all, and the mark
    tokenizer = Tokenizer(
        models.WordPiece(ids, unk_token=unknown, continuing_subword_prefix="", max_input_chars_per_word=longest)
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    mark = pre_tokenizers.Metaspace(SPACE, "always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), mark])
    tokenizer.decoder = decoders.Metaspace(SPACE, "always", split=False)
    return tokenizer


def _spaced_decoder(*, strip: bool) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _cleaning(vocab: GgufVocab) -> list[normalizers.Normalizer]:
    """What SentencePiece does to a text first: its table of characters, and spaces that are too many."""
    table = bytes(value & 255 for value in vocab.header.get("precompiled_charsmap") or ())
    try:
        steps: list[normalizers.Normalizer] = [normalizers.Precompiled(table)] if table else []
    except Exception as error:  # the library raises bare Exception for every kind of bad table
        raise TokenizerError(f"precompiled_charsmap cannot be used: {error}") from error
    if vocab.flag("remove_extra_whitespaces", default=False):
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return steps


def _unknown(vocab: GgufVocab) -> str | None:
    return vocab.named("unknown") or next(iter(vocab.of_type(UNKNOWN)), None)


def _check_scores(vocab: GgufVocab) -> None:
    if len(vocab.scores) != len(vocab.tokens):
        raise TokenizerError(f"the vocabulary has {len(vocab.tokens)} tokens and {len(vocab.scores)} scores")


def _bpe(vocab: GgufVocab, merges: Sequence[tuple[str, str]], **options: Any) -> models.BPE:
    ids = {token: id_ for id_, token in reversed(list(enumerate(vocab.tokens)))}
    try:
        return models.BPE(ids, list(merges), **options)
    except Exception as error:  # the library raises bare Exception for every kind of bad vocabulary
        raise TokenizerError(f"the vocabulary cannot be used: {error}") from error


def _pair(merge: str) -> tuple[str, str]:
    at = merge.find(" ", 1)
    if at < 0 or at + 1 == len(merge):
        raise TokenizerError(f"the GGUF header has the merge {merge!r}; two tokens and a space are allowed")
    return merge[:at], merge[at + 1 :]


def _merges(vocab: GgufVocab) -> list[tuple[str, str]]:
    """SentencePiece's scores as merges: joining any two tokens to a third ranks as high as the third scores."""
    return ranked_merges({token: -score for token, score in zip(vocab.tokens, vocab.scores, strict=True)})


def ranked_merges(ranks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every way to join two tokens to a third, those to the lowest ranks first, and of those the longest left part."""
    found = [
        (rank, -len(left), left, right)
        for token, rank in ranks.items()
        for left, right in ((token[:at], token[at:]) for at in range(1, len(token)))
        if left in ranks and right in ranks
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def _finish(vocab: GgufVocab, tokenizer: Tokenizer, *, add_bos: bool = False, add_eos: bool = False) -> Tokenizer:
    tokenizer.add_special_tokens([_added(token) for token in vocab.of_type(UNKNOWN, CONTROL)])
    tokenizer.add_tokens([_added(token) for token in vocab.of_type(USER_DEFINED)])
    begin, end, between = vocab.named("bos") or vocab.named("cls"), vocab.named("eos"), vocab.named("seperator")
    if vocab.kind == "bert":
        end, between = between or end, None  # the key's own spelling
    first = begin if vocab.flag("add_bos_token", default=add_bos) else None
    last = (end or between) if vocab.flag("add_eos_token", default=add_eos) else None
    middle = between if vocab.flag("add_sep_token", default=vocab.kind == "t5") else None
    around = {token: tokenizer.token_to_id(token) for token in (first, last, middle) if token is not None}
    if around:
        single = [token for token in (first, "$A", last) if token is not None]
        second = [f"{token}:1" if vocab.kind == "bert" else token for token in ("$B", last) if token is not None]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *([middle] if middle else []), *second],
            special_tokens=list(around.items()),
        )
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False)
