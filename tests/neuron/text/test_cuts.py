"""Where a text may be cut, rule by rule of a tokenizer.json; that parts have the ids of the whole is tried in test_parts.py."""

from typing import Any

import pytest

from neuron_jax.text.cuts import Cuts, cuts_of
from neuron_jax.text.vocab_bytes import SPACES

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BARE = {**BYTE_LEVEL, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\p{L}+"}, "behavior": "Isolated"}
PREPEND = {"type": "Prepend", "prepend": "\u2581"}
NFC = {"type": "NFC"}


def added(content: str, **flags: bool) -> dict[str, Any]:
    rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **rules, **flags}


def cuts(
    *names: dict[str, Any], normalizers: Any = (), words: Any = (BYTE_LEVEL,), vocab: Any = ("a", "b"), **model: Any
) -> Cuts | None:
    return cuts_of(
        {
            "added_tokens": list(names),
            "normalizer": {"type": "Sequence", "normalizers": list(normalizers)},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(words)},
            "model": {"type": "BPE", "vocab": dict.fromkeys(vocab, 0), **model},
        }
    )


def places(found: Cuts | None, text: str, at: int = 0) -> list[int]:
    assert found is not None
    return list(found.after(text, at))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (added("<a>"), True),
        (added("<a>", lstrip=True), True),
        (added("<a b>"), True),
        (added("<a>", normalized=True), True),
        (added("<a>", normalized=True, lstrip=True), False),
        (added("<a>", normalized=True, rstrip=True), False),
        (added("<a b>", normalized=True), False),
        (added("  "), True),
        (added("  ", rstrip=True), False),
        (added("  ", lstrip=True), False),
        (added(" "), False),
        (added("\n\n", special=False), True),
        (added("aba"), False),
        (added("ab"), True),
    ],
)
def test_a_name_is_found_in_the_text_as_it_was_written_or_nothing_is_known(name: dict[str, Any], known: bool) -> None:
    """Names of more than one space are no obstacle; one whose end is its own beginning is."""
    assert (cuts(name) is not None) is known


@pytest.mark.parametrize(
    ("one", "other", "known"),
    [("<a>", "<b>", False), ("<a>", "[b]", True), ("ab", "cabd", False), ("cabd", "ab", False), ("ab", "bc", False)],
)
def test_names_stand_apart(one: str, other: str, known: bool) -> None:
    """None inside of another, none that begins as another ends. Whose names are plain text, they do not matter."""
    names = [added(one), added(other)]
    plain = {"added_tokens": names, "pre_tokenizer": BYTE_LEVEL, "model": {"type": "BPE", "vocab": {}}}

    assert (cuts(*names) is not None) is (known or (one, other) == ("<a>", "<b>"))
    assert cuts_of(plain, verbatim=True) is not None


@pytest.mark.parametrize(
    ("normalizers", "back"),
    [
        ((), 0),
        ((NFC,), 0),
        ((SPACES,), 0),
        ((PREPEND, SPACES), 1),
        ((PREPEND, NFC), 1),
        ((NFC, PREPEND), None),
        ((PREPEND, PREPEND), None),
        (({"type": "Prepend", "prepend": "_"},), None),
        (({"type": "Replace", "pattern": {"String": "a"}, "content": "b"},), None),
        (({"type": "Strip"}, NFC), None),
    ],
)
def test_a_normalizer_treats_both_sides_apart_or_nothing_is_known(normalizers: Any, back: int | None) -> None:
    """A space that it puts in front of a text is left out of the right part."""
    found = cuts(normalizers=normalizers)

    assert (None if found is None else found.back) == back


@pytest.mark.parametrize(
    ("words", "vocab", "known"),
    [
        ((BYTE_LEVEL,), ("a b",), True),
        ((BARE,), ("a b",), False),
        ((BARE,), ("a\u0120b",), False),
        ((BARE,), (" b", "\u2581\u2581b", "ab"), True),
        ((), ("a b",), False),
        ((SPLIT, BARE), ("a b",), True),
        (({**SPLIT, "pattern": {"String": " "}},), ("a b",), False),
        (({**SPLIT, "pattern": {"String": " "}},), ("ab",), True),
        (({"type": "Metaspace"},), ("a b",), True),
        (({"type": "Metaspace", "split": False},), ("a b",), False),
        (({"type": "Whitespace"},), ("a b",), True),
        (({"type": "WhitespaceSplit"},), ("a b",), True),
        (({"type": "Digits"},), ("a b",), False),
        (({"type": "Digits"}, BYTE_LEVEL), ("a b",), True),
        (({"type": "UnicodeScripts"}, BYTE_LEVEL), ("a",), False),
        (({**SPLIT, "pattern": {"Regex": r"(?<=a)b"}},), ("a",), False),
        (({**SPLIT, "pattern": {"Regex": r"^a|b$"}},), ("a",), False),
        (({**SPLIT, "pattern": {"Regex": r"\ba"}},), ("a",), False),
        (({**SPLIT, "pattern": {"Regex": r"[^\s$]+|\p{L}\d(?!\S)"}},), ("a",), True),
    ],
)
def test_words_end_there_or_no_token_spans_two(words: Any, vocab: Any, known: bool) -> None:
    """A pattern that looks at what stands before it may match otherwise in a part."""
    assert (cuts(words=words, vocab=vocab) is not None) is known


@pytest.mark.parametrize(
    "model", [{"type": "Unigram"}, {"continuing_subword_prefix": "##"}, {"end_of_word_suffix": "</w>"}]
)
def test_without_words_only_a_plain_bpe_is_known(model: dict[str, Any]) -> None:
    """Others mark where words go on or end."""
    assert cuts(words=()) is not None
    assert cuts(words=(), **model) is None


def test_cuts_stand_between_two_words() -> None:
    """Before a space; where words come by a pattern, behind a line's end and before East Asian punctuation as well."""
    text = "ab cd\nef\u3002\u65e5  g 1 h"

    assert places(cuts(), text) == [2, 6, 8]
    assert places(cuts(), "\u65e5\u3002\u672c") == [1]
    assert places(cuts(words=({"type": "Metaspace"},)), text) == [2]
    assert places(cuts(words=({**BYTE_LEVEL, "add_prefix_space": True},)), text) == [2]
    assert places(cuts(normalizers=(PREPEND,)), text) == [2]
    assert places(cuts(words=(SPLIT, BARE)), text) == [2, 6, 8]
    assert [places(cuts(), text, at) for at in (3, 6, 7, 9)] == [[6, 8], [6, 8], [8], []]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({}, [4]),
        ({"lstrip": True}, []),
        ({"single_word": True}, []),
        ({"normalized": True}, []),
        ({"rstrip": True}, [4]),
    ],
)
def test_a_cut_is_before_a_name_that_takes_nothing_with_it(flags: dict[str, bool], found: list[int]) -> None:
    """And never within it, nor beside one that does."""
    assert places(cuts(added("<|xy|>", **flags)), "a.b.<|xy|>.c") == found


def test_a_name_that_begins_before_the_place_is_seen() -> None:
    """However it was come to: there is no cut in it."""
    found = cuts(added("<|x y z|>"))
    text = "aaa <|x y z|> bbb ccc"

    assert [places(found, text, at) for at in (4, 5, 8, 12)] == [[4, 17], [17], [17], [17]]


def test_names_in_a_row_stay_together() -> None:
    found = cuts(added("<|x|>"), added("[y]"))

    assert places(found, "a<|x|>[y]<|x|>.[y]") == [1, 15]
