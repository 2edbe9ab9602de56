"""Tokenizers from GGUF headers and tokenizer.json, against independent implementations."""

import itertools
import random
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from neuron_jax.text.errors import TokenizerError, TooManyTokensError
from neuron_jax.text.tokenizer import load_tokenizer
from tests.fakes import tiny_bert
from tests.fakes.vocabularies import (
    byte_level,
    byte_level_header,
    byte_level_json,
    sentence_piece,
    sentence_piece_header,
)

COUNT = len(byte_level_header()["tokenizer.ggml.tokens"])


def names(tokenizer: Any, text: str, **options: Any) -> list[str]:
    return [tokenizer.piece(id_).decode() for id_ in tokenizer.encode(text, **{"add_special": False, **options})]


def test_digits_of_smollm_stand_alone() -> None:
    """SmolLM cuts numbers into digits; GPT-2's cut lets "123" be one token."""
    assert names(byte_level("smollm"), "123") == ["1", "2", "3"]
    assert names(byte_level("gpt-2"), "123") == ["123"]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("llama-bpe", "12345", ["123", "4", "5"]),
        ("qwen2", "123", ["1", "2", "3"]),
        ("tekken", "123", ["1", "2", "3"]),
        ("llama-bpe", "x'LL", ["x", "'LL"]),
        ("gpt-2", "x'LL", ["x", "'", "LL"]),
        ("default", "'ll", ["'", "ll"]),
        ("gpt-2", "'ll", ["'ll"]),
        ("smollm", "hello w", ["hello", " w"]),
    ],
)
def test_pre_tokenizers_cut_as_their_models_were_trained(pre: str, text: str, expected: list[str]) -> None:
    """The header's `pre` decides where merges may not cross."""
    assert names(byte_level(pre), text) == expected


@pytest.mark.parametrize(
    ("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("dbrx", False), ("qwen2", False), ("gpt-2", False)]
)
def test_a_word_of_the_vocabulary_is_taken_whole_where_its_model_was_trained_so(pre: str, whole: bool) -> None:
    """Whether or not merges lead to it."""
    assert names(byte_level(pre, merges=[]), "he") == (["he"] if whole else ["h", "e"])


def test_an_unknown_pre_tokenizer_is_refused_by_name() -> None:
    """A wrong cut gives fluent nonsense, so a guess is worse than an error."""
    with pytest.raises(TokenizerError, match=r"'poro'.*llama-bpe"):
        byte_level("poro")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "rwkv"}, "'rwkv'.*gpt2, gemma4, llama"),
        ({"tokens": []}, "0 tokens"),
        ({"token_type": [1]}, "1 token types"),
        ({"merges": ["ab"]}, "the merge 'ab'"),
        ({"merges": ["q zz"]}, "cannot be used"),
        ({"merges": [5]}, r"tokenizer\.ggml\.merges is no list of str"),
        ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens is no list of str"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"eos_token_id": 9999}, "eos_token_id is 9999"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": COUNT}, f"eos_token_id is {COUNT}"),
        ({"merges": ["a "]}, "the merge 'a '"),
        ({"merges": [" a"]}, "the merge ' a'"),
    ],
)
def test_a_broken_header_gives_one_clear_error(change: dict[str, Any], message: str) -> None:
    """The message names the key and what was found."""
    with pytest.raises(TokenizerError, match=message):
        byte_level(**change)


def test_scores_must_match_the_tokens() -> None:
    """A SentencePiece vocabulary without its scores cannot be merged."""
    with pytest.raises(TokenizerError, match="3 scores"):
        sentence_piece(scores=[0.0, 0.0, 0.0])


def test_no_description_at_all_is_an_error() -> None:
    """A model folder without a tokenizer cannot serve text."""
    with pytest.raises(TokenizerError, match="no tokenizer"):
        load_tokenizer(json=None, gguf=None, config={})


def test_broken_json_is_named() -> None:
    """The library's reason is passed on."""
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(json=b"{", gguf=None, config={})


def test_special_tokens_are_recognised_and_skipped() -> None:
    """Control tokens have one id in text and no text in answers; a user's token is text like any other."""
    tokenizer = byte_level()
    ids = tokenizer.encode("<|im_start|>hello<think><|im_end|>", add_special=False)

    assert (ids[0], ids[-1]) == (0, 1)
    assert tokenizer.decode(ids, skip_special=True) == "hello<think>"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hello<think><|im_end|>"
    assert tokenizer.special_ids == {0, 1, 2}
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")


@pytest.mark.parametrize(
    ("flag", "pre", "expected"),
    [
        (True, "smollm", [0]),
        (False, "llama-bpe", []),
        (None, "llama-bpe", [0]),
        (None, "tekken", [0]),
        (None, "smollm", []),
        (None, "dbrx", []),
    ],
)
def test_the_begin_token_follows_the_header(flag: bool | None, pre: str, expected: list[int]) -> None:
    """`add_bos_token` decides, else what the family does."""
    keys = {} if flag is None else {"add_bos_token": flag}
    tokenizer = byte_level(pre, **keys)

    assert tokenizer.encode("w", add_special=True)[:-1] == expected
    assert len(tokenizer.encode("w", add_special=False)) == 1


def test_an_end_token_is_added_where_the_header_says_so() -> None:
    """Few models want it, but a header that says so means it."""
    assert byte_level(add_eos_token=True).encode("w", add_special=True)[-1] == 1


@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()], ids=["bytes", "sentence-piece"])
def test_any_text_comes_back(tokenizer: Any) -> None:
    """Encoding loses nothing, whatever the script."""
    for text in ("hello world", "  two  spaces ", "日本語 🙂🚀", "¿Cuál?\r\n\t", "\x00\x7f", "e\u0301"):
        assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=True) == text


def test_decoding_random_ids_equals_the_library() -> None:
    """Bytes that are no UTF-8 become U+FFFD exactly where the library puts them."""
    tokenizer, rng = byte_level(), random.Random(7)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20)]

        assert tokenizer.decode(ids, skip_special=True) == tokenizer._backend.decode(ids, skip_special_tokens=True)


def test_ids_of_the_padded_tail_have_no_text() -> None:
    """A model may have more logits than its tokenizer has tokens."""
    tokenizer = byte_level()

    assert tokenizer.piece(tokenizer.vocab_size + 5) == b""
    assert tokenizer.decode([tokenizer.vocab_size], skip_special=False) == ""


def sentence_piece_oracle(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's own algorithm: join the best-scored pair, leftmost first, until none is left."""
    symbols = list("\u2581" + text.replace(" ", "\u2581"))
    while True:
        pairs = [(-scores[a + b], at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
        if not pairs:
            return symbols
        at = min(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def test_scores_as_merges_equal_sentence_piece() -> None:
    """Every text over the alphabet is cut as the original algorithm cuts it."""
    header, tokenizer, rng = sentence_piece_header(), sentence_piece(), random.Random(3)
    listed = list(zip(header["tokenizer.ggml.tokens"], header["tokenizer.ggml.scores"], strict=True))
    scores = dict(listed[259:])
    for _ in range(300):
        text = "".join(rng.choices("helowrd ", k=rng.randrange(1, 25)))
        tokens = [listed[id_][0] for id_ in tokenizer.encode(text, add_special=False)]

        assert tokens == sentence_piece_oracle(text, scores)


def test_sentence_piece_falls_back_to_bytes_and_adds_its_begin_token() -> None:
    """What is not in the vocabulary is spelled in bytes, and `<s>` stands in front."""
    tokenizer = sentence_piece()

    assert tokenizer.encode("é", add_special=True) == [1, tokenizer.id_of("\u2581"), 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.strips_leading_space
    assert not sentence_piece(add_space_prefix=False).strips_leading_space


def json_tokenizer(decoder: Any, **special: Any) -> bytes:
    """A tokenizer.json with a word-piece-free BPE over a few characters."""
    vocab = {char: at for at, char in enumerate(["\u2581", "a", "b", "\u2581a", "<unk>"])}
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("\u2581", "a")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoder
    backend.add_special_tokens([tokenizers.AddedToken("<s>", normalized=False, **special)])
    return backend.to_str().encode()


def test_tokenizer_json_keeps_its_own_rules() -> None:
    """Metaspace puts a space before the first word only and takes it off again."""
    config = {"bos_token": {"content": "<s>"}, "eos_token": None}
    tokenizer = load_tokenizer(json=json_tokenizer(decoders.Metaspace()), gguf=None, config=config)

    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", None)
    assert tokenizer.encode("a<s>a", add_special=False) == [3, 5, 1]
    assert tokenizer.decode([3, 1], skip_special=True) == "aa"


def test_a_decoder_nobody_knows_is_refused() -> None:
    """Bytes of tokens cannot be guessed."""
    with pytest.raises(TokenizerError, match="BPEDecoder"):
        load_tokenizer(json=json_tokenizer(decoders.BPEDecoder()), gguf=None, config={})


def test_two_texts_are_joined_as_the_tokenizer_does() -> None:
    """With the place of the second where it is told apart; what is too long is told with all that stands around it."""
    tokenizer = load_tokenizer(json=tiny_bert.tokenizer().to_str().encode(), gguf=None, config={})
    bare = load_tokenizer(json=json_tokenizer(decoders.Metaspace()), gguf=None, config={})
    whole = tiny_bert.tokenizer().encode("the cat", "cat?")

    assert tokenizer.encode_pair("the cat", "cat?", most=7) == (whole.ids, whole.type_ids.index(1))
    assert bare.encode_pair("a", "a") == (bare.encode("a", add_special=False) * 2, 1)
    with pytest.raises(TooManyTokensError) as caught:
        tokenizer.encode_pair("the cat", "cat?", most=6)
    assert (caught.value.tokens, caught.value.exact) == (7, True)
    with pytest.raises(TooManyTokensError):
        tokenizer.encode_pair("cat", "", most=2)
    assert tokenizer.decode(whole.ids, skip_special=True) == "the cat cat ?"


@pytest.mark.parametrize(
    ("kind", "keys", "expected", "place"),
    [
        ("bert", {}, [1, 3, 2, 4, 2], 3),
        ("t5", {"add_bos_token": True}, [1, 3, 2, 2, 4, 2], 0),
        ("t5", {"add_bos_token": True, "add_sep_token": False}, [1, 3, 2, 4, 2], 0),
    ],
)
def test_two_texts_are_joined_as_the_header_says(
    kind: str, keys: dict[str, Any], expected: list[int], place: int
) -> None:
    """BERT's separator ends both; XLM-RoBERTa has one more between them, unless the header says otherwise."""
    header = {
        "model": kind,
        "tokens": ["<unk>", "<s>", "</s>", "\u2581a", "\u2581b"],
        "token_type": [2, 3, 3, 1, 1],
        "scores": [0.0, 0.0, 0.0, -1.0, -2.0],
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "seperator_token_id": 2,
        **keys,
    }
    tokenizer = load_tokenizer(json=None, gguf=header, config={})

    assert tokenizer.encode_pair("a", "b") == (expected, place)


def test_a_text_that_is_too_long_may_be_cut() -> None:
    """To its first tokens, with what is put around it; one that fits is as ever."""
    tokenizer = load_tokenizer(json=tiny_bert.tokenizer().to_str().encode(), gguf=None, config={})
    whole = tokenizer.encode("cat " * 50, add_special=True)

    assert tokenizer.encode_start("cat " * 50, 10) == [*whole[:9], whole[-1]]
    assert tokenizer.encode_start("cat " * 50, 52) == whole
    with pytest.raises(TooManyTokensError):
        tokenizer.encode_start(" " * 1000 + "cat " * 50, 10)


def test_a_wrong_token_name_in_the_config_is_named() -> None:
    """tokenizer_config.json is somebody's file too."""
    with pytest.raises(TokenizerError, match=r"bos_token is 7"):
        load_tokenizer(json=json_tokenizer(decoders.Metaspace()), gguf=None, config={"bos_token": 7})


def test_marked_names_are_plain_text_and_all_else_is_the_same() -> None:
    """A name with the mark inside is spelled out; genuine names are tokens; the cut in between does not show."""
    tokenizer = byte_level()
    plain = "<|im_start|>hello w123<think>\n\n hello<|im_end|>\n"

    assert tokenizer.encode_marked(plain, mark="\U000f0000") == tokenizer.encode(plain, add_special=False)
    ids = tokenizer.encode_marked("<|im_start|>hi <\U000f0000|im_end|><|im_end|>", mark="\U000f0000")
    assert (ids[0], ids[-1], ids.count(1)) == (0, 1, 1)
    assert tokenizer.decode(ids, skip_special=True) == "hi <|im_end|>"


@pytest.mark.parametrize("special", [{}, {"lstrip": True}, {"rstrip": True}])
def test_marked_encoding_keeps_the_rules_around_special_tokens(special: dict[str, bool]) -> None:
    """Spaces that a special token swallows, and a prefix for the first word only, hold on both paths."""
    tokenizer = load_tokenizer(json=json_tokenizer(decoders.Metaspace(), **special), gguf=None, config={})
    for text in ("a<s>a", "<s>a", " a <s> a b", "ab<s><s>b"):
        assert tokenizer.encode_marked(text, mark="\U000f0000") == tokenizer.encode(text, add_special=False)


def test_the_header_may_come_without_its_prefix_or_types() -> None:
    """Keys are read with or without `tokenizer.ggml.`; without types every token is a normal one."""
    header = {key.removeprefix("tokenizer.ggml."): value for key, value in byte_level_header().items()}
    del header["token_type"]

    assert load_tokenizer(json=None, gguf=header, config={}).special_ids == frozenset()


def test_a_tokenizer_json_round_trips_through_its_own_description() -> None:
    """The vocabulary of a header written out as tokenizer.json gives the same ids and bytes."""
    first = byte_level()
    second = load_tokenizer(json=byte_level_json(), gguf=None, config={})

    assert second.encode("hello w<|im_end|>", add_special=True) == first.encode("hello w<|im_end|>", add_special=True)
    assert [second.piece(at) for at in range(second.vocab_size)] == [first.piece(at) for at in range(first.vocab_size)]
