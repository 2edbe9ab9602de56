"""A tokenizer out of a GGUF header; knows the `tokenizer.ggml.*` keys, must not know the file they came from."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.vocab_bytes import SPACE

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Token types of the format; 1 is normal, 5 unused, 6 a byte."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@frozen
class PreTokenizer:
    """How a BPE vocabulary wants its text cut: patterns one after the other, each on the pieces of those before."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a word that is in the vocabulary is taken whole
    add_bos: bool = False  # where the header does not say


_LLAMA3_SPLIT = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2_SPLIT = _WORDS + r"\p{N}" + _REST

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), PreTokenizer((_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r"), PreTokenizer((r"\p{N}", _GPT2))),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3"), PreTokenizer((_LLAMA3_SPLIT,), ignore_merges=True, add_bos=True)
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe"), PreTokenizer((_LLAMA3_SPLIT,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), PreTokenizer((_QWEN2_SPLIT,))),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
}
"""Patterns by `tokenizer.ggml.pre`, as llama.cpp defines the names (src/llama-vocab.cpp)."""


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
        tokens = tuple(keys.get("tokens", ()))
        types = tuple(int(kind) for kind in keys.get("token_type", ())) or (1,) * len(tokens)
        if not tokens or len(types) != len(tokens):
            raise TokenizerError(f"the GGUF header has {len(tokens)} tokens and {len(types)} token types")
        return cls(
            kind=str(keys.get("model")),
            pre=str(keys.get("pre", "default")),
            tokens=tokens,
            types=types,
            merges=tuple(keys.get("merges", ())),
            scores=tuple(float(score) for score in keys.get("scores", ())),
            header=keys,
        )

    def named(self, name: str) -> str | None:
        """The token that `<name>_token_id` points to."""
        id_ = self.header.get(f"{name}_token_id")
        if id_ is None:
            return None
        if not 0 <= int(id_) < len(self.tokens):
            raise TokenizerError(f"{name}_token_id is {id_}; the GGUF header has {len(self.tokens)} tokens")
        return self.tokens[int(id_)]

    def flag(self, name: str, *, default: bool) -> bool:
        return bool(self.header.get(name, default))

    def of_type(self, *types: int) -> list[str]:
        return [token for token, type_ in zip(self.tokens, self.types, strict=True) if type_ in types]


def from_gguf(vocab: GgufVocab) -> Tokenizer:
    """The tokenizer that the header describes. Raises TokenizerError."""
    if vocab.kind == "gpt2":
        return _finish(vocab, *_byte_level(vocab))
    if vocab.kind == "llama":
        return _finish(vocab, _sentence_piece(vocab), add_bos=True)
    raise TokenizerError(f"the GGUF header has a {vocab.kind!r} vocabulary; 'gpt2' and 'llama' are understood")


def _byte_level(vocab: GgufVocab) -> tuple[Tokenizer, bool]:
    pre = PRE_TOKENIZERS.get(vocab.pre)
    if pre is None:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise TokenizerError(f"tokenizer.ggml.pre is {vocab.pre!r}; these are understood: {known}")
    merges = [_pair(merge) for merge in vocab.merges]
    tokenizer = Tokenizer(_bpe(vocab, merges, ignore_merges=pre.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.splits]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre.add_bos


def _sentence_piece(vocab: GgufVocab) -> Tokenizer:
    if len(vocab.scores) != len(vocab.tokens):
        raise TokenizerError(f"the GGUF header has {len(vocab.tokens)} tokens and {len(vocab.scores)} scores")
    prefix = vocab.flag("add_space_prefix", default=True)
    unknown = vocab.named("unknown") or next(iter(vocab.of_type(UNKNOWN)), None)
    tokenizer = Tokenizer(_bpe(vocab, _merges(vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *spaces] if prefix else spaces)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _bpe(vocab: GgufVocab, merges: Sequence[tuple[str, str]], **options: Any) -> models.BPE:
    ids = {token: id_ for id_, token in reversed(list(enumerate(vocab.tokens)))}
    try:
        return models.BPE(ids, list(merges), **options)
    except Exception as error:  # the library raises bare Exception for every kind of bad vocabulary
        raise TokenizerError(f"the GGUF header's vocabulary cannot be used: {error}") from error


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise TokenizerError(f"the GGUF header has the merge {merge!r}; two tokens and a space are allowed")
    return left, right


def _merges(vocab: GgufVocab) -> list[tuple[str, str]]:
    """SentencePiece's scores as merges: joining any two tokens to a third ranks as high as the third scores."""
    known = set(vocab.tokens)
    ranked = [
        (-score, -len(left), left, right)
        for token, score in zip(vocab.tokens, vocab.scores, strict=True)
        for left, right in ((token[:at], token[at:]) for at in range(1, len(token)))
        if left in known and right in known
    ]
    return [(left, right) for _, _, left, right in sorted(ranked)]


def _finish(vocab: GgufVocab, tokenizer: Tokenizer, add_bos: bool) -> Tokenizer:
    tokenizer.add_special_tokens([_added(token) for token in vocab.of_type(UNKNOWN, CONTROL)])
    tokenizer.add_tokens([_added(token) for token in vocab.of_type(USER_DEFINED)])
    first = vocab.named("bos") if vocab.flag("add_bos_token", default=add_bos) else None
    last = vocab.named("eos") if vocab.flag("add_eos_token", default=False) else None
    around = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token is not None]
    if around:
        single = [*([first] if first else []), "$A", *([last] if last else [])]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=around)
    return tokenizer


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False)
