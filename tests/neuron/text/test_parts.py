"""Long texts are encoded part by part: with the ids of the whole, in little memory, and no further than anybody wants."""

import json
import random
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from neuron_jax.text.cuts import cuts_of
from neuron_jax.text.errors import TooManyTokensError, UncutTextError
from neuron_jax.text.parts import PartEncoder, TokenCount
from neuron_jax.text.pre_tokenizers import PRE_TOKENIZERS
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.fakes.vocabularies import byte_level, byte_level_header, sentence_piece, sentence_piece_header

SAMPLE = files("neuron_jax.quality").joinpath("text.txt").read_text("utf-8")
CODE = "def f(x):\n    return x + 1  # über\n\n\nclass A:\n\tpass\r\nif (a == b) { return; }\n"
PART = 48


def trained(
    pre: Any, normalizer: Any = None, decoder: Any = None, alphabet: Sequence[str] = (), **model: Any
) -> tokenizers.Tokenizer:
    """A BPE vocabulary of some 900 tokens with two special tokens."""
    backend = tokenizers.Tokenizer(models.BPE(**model))
    backend.normalizer, backend.pre_tokenizer = normalizer, pre
    backend.decoder = decoder or decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=[AddedToken("<|a|>", normalized=False), AddedToken("<|b|>", normalized=False)],
        initial_alphabet=[*alphabet],
        show_progress=False,
    )
    backend.train_from_iterator([*SAMPLE.split("\n"), *[CODE] * 20, "日本語、你好。" * 20], trainer)
    return backend


def words(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    return trained(pre_tokenizers.Metaspace(prepend_scheme=scheme), decoder=decoders.Metaspace())


def legacy() -> tokenizers.Tokenizer:
    """Llama 2's form: no words at all, a space in front of every stretch of text."""
    backend = metaspace("always")
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return backend


def byte_alphabet() -> list[str]:
    return pre_tokenizers.ByteLevel.alphabet()


def byte_alphabet_of(byte: int) -> str:
    found: str = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(byte))[0][0]
    return found


LLAMA3, QWEN2, TEKKEN = (PRE_TOKENIZERS[name].splits[0] for name in ("llama3", "qwen2", "tekken"))
BACKENDS: dict[str, tokenizers.Tokenizer] = {
    "llama 3": trained(words(LLAMA3), alphabet=byte_alphabet(), ignore_merges=True),
    "qwen 2": trained(words(QWEN2), normalizers.NFC(), alphabet=byte_alphabet()),
    "tekken": trained(words(TEKKEN), alphabet=byte_alphabet()),
    "gpt 2": trained(pre_tokenizers.ByteLevel(add_prefix_space=False), alphabet=byte_alphabet()),
    "gpt 2 with a first space": trained(pre_tokenizers.ByteLevel(add_prefix_space=True), alphabet=byte_alphabet()),
    "metaspace first": metaspace("first"),
    "metaspace always": metaspace("always"),
    "llama 2": legacy(),
    "gguf bytes": byte_level()._backend,
    "gguf default": byte_level("default")._backend,
    "gguf sentence piece": sentence_piece()._backend,
    "gguf sentence piece without a first space": sentence_piece(add_space_prefix=False)._backend,
}


def described(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def mixtures(count: int, seed: int) -> list[str]:
    """Texts of everything that tokenizers treat in some special way, in any order."""
    rng = random.Random(seed)
    runs = [
        "<|a|>",
        "<|b|>",
        "<|im_end|>",
        "<|a",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t ",
        "\r\n",
        "e\u0301",
        "日本語、你好。 ",
        "🙂",
    ]

    def piece() -> str:
        at = rng.randrange(len(SAMPLE) - 80)
        long = rng.choice("a=1 \n") * rng.randrange(1, 30)
        return rng.choice([SAMPLE[at : at + rng.randrange(80)], rng.choice(runs), CODE, long, " hello world"])

    return ["".join(piece() for _ in range(rng.randrange(3, 60))) for _ in range(count)]


def whole(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("name", BACKENDS)
def test_parts_have_the_ids_of_the_whole(name: str) -> None:
    """Words, white space, code, other scripts, special tokens and names that only look like one, cut anywhere."""
    backend = BACKENDS[name]
    encoder = PartEncoder(backend, described(backend), part_chars=PART)
    parts = 0
    for text in mixtures(150, 5):
        assert encoder.encode(text, TokenCount(None, len(text))) == whole(backend, text)
        parts += len(list(encoder.parts(text)))

    assert parts > 150 * 8


@pytest.mark.parametrize("name", ["llama 3", "metaspace first", "llama 2", "gguf bytes"])
def test_marked_parts_have_the_ids_of_the_whole(name: str) -> None:
    """Where a message mentions special tokens, their names are text, and that text is cut as well."""
    backend = BACKENDS[name]
    tokenizer = Tokenizer(backend, bos_token=None, eos_token=None)
    small = Tokenizer(backend, bos_token=None, eos_token=None)
    for encoder in (small._verbatim, small._inner):
        encoder._part_chars = PART
    for text in mixtures(60, 6):
        marked = text.replace("<|a|>", "<\U000f0000|a|>")

        assert small.encode_marked(marked, mark="\U000f0000") == tokenizer.encode_marked(marked, mark="\U000f0000")


def changed(base: str, **change: Any) -> dict[str, Any]:
    return {**described(BACKENDS[base]), **change}


def added(content: str, **flags: bool) -> dict[str, Any]:
    rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": 0, "content": content, **rules, **flags}


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
UNKNOWN: dict[str, dict[str, Any]] = {
    "a step nobody knows": changed("llama 3", pre_tokenizer={"type": "UnicodeScripts"}),
    "a pattern that looks back": changed("llama 3", pre_tokenizer={**SPLIT, "pattern": {"Regex": r"(?<=a)b|\w+"}}),
    "a pattern that knows the start": changed("llama 3", pre_tokenizer={**SPLIT, "pattern": {"Regex": r"^a|\w+"}}),
    "a normalizer that strips": changed("llama 3", normalizer={"type": "Strip", "left": True, "right": True}),
    "names that overlap": changed("llama 3", added_tokens=[added("<ab>"), added(">c<")]),
    "a name in a name": changed("llama 3", added_tokens=[added("ab"), added("cabd")]),
    "a token of one space": changed("llama 3", added_tokens=[added(" ")]),
    "words joined by a token": {
        **described(BACKENDS["llama 2"]),
        "model": {**described(BACKENDS["llama 2"])["model"], "vocab": {"a\u2581b": 0}},
    },
    "words without boundaries": changed("gpt 2", model={"type": "Unigram"}, pre_tokenizer=None),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_text_is_not_cut_by_rules_that_nobody_knows(name: str) -> None:
    """It is encoded whole then, which is always right."""
    assert cuts_of(UNKNOWN[name]) is None


class Watched:
    """A backend that counts the characters that it is given, and the most at once."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self.backend, self.chars, self.most = backend, 0, 0

    def encode(self, text: str, **options: Any) -> Any:
        self.chars += len(text)
        self.most = max(self.most, len(text))
        return self.backend.encode(text, **options)


def watched(name: str = "llama 3") -> tuple[Watched, PartEncoder]:
    backend = Watched(BACKENDS[name])
    return backend, PartEncoder(backend, described(BACKENDS[name]))


def test_counting_goes_on_for_a_quarter_more_than_is_allowed() -> None:
    """Then it is told as an estimate for the whole; at the end, exactly."""
    count = TokenCount(8, 100)
    count.add(10, 50)
    assert (count.tokens, count.done) == (10, 50)
    with pytest.raises(TooManyTokensError) as roughly:
        count.add(1, 10)
    assert (roughly.value.tokens, roughly.value.exact) == (11 * 100 // 60, False)
    with pytest.raises(TooManyTokensError) as more:
        TokenCount(8, 3).check(11, 50)
    assert more.value.tokens == 11
    with pytest.raises(TooManyTokensError) as unseen:
        TokenCount(8, 3).check(11, 0)
    assert unseen.value.tokens == 33


@pytest.mark.parametrize(("most", "refused"), [(None, False), (12, False), (11, True)])
def test_the_last_part_is_judged_when_all_is_counted(most: int | None, refused: bool) -> None:
    """However much it is, for then its number is known."""
    count = TokenCount(most, 100)
    count.add(12, 100)
    if not refused:
        count.close()
        return
    with pytest.raises(TooManyTokensError) as raised:
        count.close()
    assert (raised.value.tokens, raised.value.exact) == (12, True)


@pytest.mark.parametrize(("chars", "parts"), [(95, 1), (96, 1), (97, 2), (145, 2), (149, 3)])
def test_a_text_of_two_parts_is_taken_whole(chars: int, parts: int) -> None:
    """One that is longer is cut at the first place after a part's length."""
    backend = BACKENDS["llama 3"]
    text = ("word " * 40)[:chars]

    assert len(list(PartEncoder(backend, described(backend), part_chars=PART).parts(text))) == parts


class Anywhere:
    """Rules by which a text may be cut behind any character."""

    back = 0

    def after(self, text: str, at: int) -> Iterable[int]:
        return range(at, len(text))


def test_a_text_is_cut_only_where_the_tokenizer_agrees() -> None:
    """Whatever the rules say: this one makes one token of each of these words."""
    tokenizer = byte_level()
    encoder = PartEncoder(tokenizer._encoder._backend, {}, part_chars=7)
    encoder.__dict__["cuts"] = Anywhere()
    parts = list(encoder.parts("hello" * 20))

    assert len(parts) > 5
    assert all(len(part) % 5 == 0 for part in parts)


def test_counting_stops_soon_after_the_limit() -> None:
    """Of four million characters some thousands are looked at, a part at a time; the number told is an estimate."""
    text = (SAMPLE * 1100)[:4_000_000]
    backend, encoder = watched()
    with pytest.raises(TooManyTokensError) as raised:
        encoder.encode(text, TokenCount(2_000, len(text)))

    assert backend.chars < 40_000
    assert backend.most < 40_000
    assert not raised.value.exact
    real = len(whole(BACKENDS["llama 3"], text[:40_000])) * 100
    assert 0.7 * real < raised.value.tokens < 1.4 * real


def test_a_little_too_much_is_counted_to_the_end() -> None:
    """Whoever compacts a conversation wants to know by how much."""
    text, (_, encoder) = SAMPLE * 16, watched()
    tokens = len(whole(BACKENDS["llama 3"], text))
    count = TokenCount(tokens - 9, len(text))
    encoder.encode(text, count)
    with pytest.raises(TooManyTokensError) as raised:
        count.close()

    assert (raised.value.tokens, raised.value.exact) == (tokens, True)


@pytest.mark.parametrize("char", ["a", "=", "9", "\n", "é", "界"])
def test_a_stretch_without_cuts_is_refused_before_it_is_taken_whole(char: str) -> None:
    """One character four million times is too many tokens, and known to be so in parts."""
    backend, encoder = watched()
    text = char * 4_000_000
    with pytest.raises(TooManyTokensError):
        encoder.encode(text, TokenCount(1_000, len(text)))

    assert backend.chars < 200_000


def test_a_stretch_without_cuts_that_would_fit_is_bounded_all_the_same() -> None:
    """It cannot be encoded in parts, and whole it takes too much memory."""
    backend = BACKENDS["llama 3"]
    encoder = PartEncoder(backend, described(backend), part_chars=PART)
    text = "ab12" * 16 * PART + "x"
    with pytest.raises(UncutTextError, match=f"{len(text)} characters .* {64 * PART} are taken"):
        encoder.encode(text, TokenCount(10**6, len(text)))
    assert encoder.encode(text[:-1], TokenCount(10**6, 64 * PART)) == whole(backend, text[:-1])

    assert encoder.encode(text[: 40 * PART], TokenCount(10**6, 40 * PART)) == whole(backend, text[: 40 * PART])


@pytest.mark.parametrize("name", ["llama 3", "llama 2", "gguf bytes", "gguf sentence piece"])
def test_what_a_text_has_at_least_is_never_more_than_it_has(name: str) -> None:
    """The longest token bounds the number from below, whatever the text is."""
    tokenizer = Tokenizer(BACKENDS[name], bos_token=None, eos_token=None)
    longest = max(map(tokenizer.piece, range(tokenizer.vocab_size)), key=len).decode()
    for text in [*mixtures(60, 7), longest * 50]:
        assert tokenizer.spelling.least_tokens(text) <= len(tokenizer.encode(text, add_special=False))

    certain = name != "llama 2"  # whose trained vocabulary does not spell every byte
    assert (tokenizer.spelling.least_tokens("x" * 10**6) > 0) is certain


def test_characters_that_a_vocabulary_does_not_spell_do_not_count() -> None:
    """Some vocabularies leave out control characters: a text of nothing else has no tokens."""
    description = described(BACKENDS["gpt 2"])
    del description["model"]["vocab"][byte_alphabet_of(4)]
    backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    tokenizer = Tokenizer(backend, bos_token=None, eos_token=None)

    assert tokenizer.encode("\x04" * 10**4, add_special=False, most=10) == []
    with pytest.raises(TooManyTokensError):
        tokenizer.encode("\x04a" * 10**4, add_special=False, most=10)


def test_a_hopeless_text_is_not_looked_at() -> None:
    """Its length alone says that it is too long."""
    tokenizer = byte_level()
    tokenizer._encoder._backend = None
    with pytest.raises(TooManyTokensError) as raised:
        tokenizer.encode("x" * 100_000, add_special=True, most=100)

    assert not raised.value.exact


@pytest.mark.parametrize("header", [byte_level_header(add_eos_token=True), sentence_piece_header(add_eos_token=True)])
def test_what_stands_around_a_raw_prompt_stays(header: Any) -> None:
    """A begin and an end token, however long the text between them is."""
    tokenizer = load_tokenizer(json=None, gguf=header, config={})
    text = "hello world " * 4000
    ids = tokenizer.encode(text, add_special=True)

    assert ids == tokenizer._backend.encode(text, add_special_tokens=True).ids
    assert tokenizer.encode("", add_special=True) == tokenizer._backend.encode("", add_special_tokens=True).ids


def test_a_tokenizer_that_would_cut_or_fill_up_prompts_does_not() -> None:
    """`truncation` and `padding` in a tokenizer.json are left over from training."""
    backend = tokenizers.Tokenizer.from_str(BACKENDS["llama 3"].to_str())
    plain = whole(backend, SAMPLE)
    backend.enable_truncation(8)
    backend.enable_padding(length=5000)
    tokenizer = load_tokenizer(json=backend.to_str().encode(), gguf=None, config={})

    assert tokenizer.encode(SAMPLE, add_special=False) == plain
