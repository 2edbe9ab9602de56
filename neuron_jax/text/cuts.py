"""Where a long text can be cut so that its parts' tokens are those of the whole; knows tokenizer.json's words, no ids.

A cut stands between two words, where three things hold whatever the rest of the text is:

- no special token reaches over it, nor takes the white space beside it with it;
- the normalizer treats both sides apart, and puts nothing in front of the right one that the whole does not have;
- the pre-tokenizer has a boundary there, or, where it has none at all, no token of the vocabulary spans one.

A description of which this is not known has no cuts. Source of the steps' meaning: https://huggingface.co/docs/tokenizers
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from neuron_jax.text.vocab_bytes import SPACE, SPACES, steps

_LETTER = (
    "[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f"  # Latin
    "\u0391-\u03a1\u03a3-\u03a9\u03b1-\u03c9\u0410-\u044f"  # Greek, Cyrillic
    "\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0905-\u0939\u0e01-\u0e2e"  # Hebrew, Arabic, Devanagari, Thai
    "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]"  # kana, Han, Hangul
)
"""Characters that every edition of Unicode calls letters, and that no normalization joins with a space."""

_SPACE = f"(?<={_LETTER})(?= {_LETTER})"
_NEWLINE = f"(?<={_LETTER}\n)(?={_LETTER})"
_STOP = f"(?<={_LETTER})(?=[\u3001\u3002\uff01\uff0c\uff1a\uff1b\uff1f]{_LETTER})"
"""Before a space, after a line's end, before Chinese and Japanese punctuation; a letter on either side."""

_BLANKS = " \n\t\r\u2581"
_APART = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
"""Normalizers that work character by character, marks aside, which are no letters."""

_WORDS = {"Whitespace", "WhitespaceSplit", "Punctuation", "Digits"}
_LOOKS_AROUND = re.compile(r"\(\?<|\^|\$|\\[bBAzZGK1-9]")


@frozen
class Cuts:
    """`back`: how many characters after the cut the tokenizer writes itself, so that the right part leaves them out."""

    back: int
    _places: re.Pattern[str]
    _begins: frozenset[str]  # names of tokens before which a cut is
    _reach: int  # the longest name of a token

    def after(self, text: str, at: int) -> Iterator[int]:
        """The cuts of `text` from `at` on. Names that begin before `at` are seen, if they reach over it."""
        last = -1
        for found in self._places.finditer(text, max(0, at - self._reach)):
            start, name = found.start(), found[0]
            if start >= at and start != last and (not name or name in self._begins):
                yield start
            last = found.end() if name else last


def cuts_of(description: Mapping[str, Any], *, verbatim: bool = False) -> Cuts | None:
    """The cuts of a tokenizer.json, None where none are known. `verbatim`: special tokens' names are plain text."""
    added = [row for row in description["added_tokens"] if not (verbatim and row["special"])]
    names = [row["content"] for row in added if row["content"].strip(_BLANKS)]
    normalizers = steps(description.get("normalizer"), "normalizers")
    words = steps(description.get("pre_tokenizer"), "pretokenizers")
    prepends = bool(normalizers) and normalizers[0] == {"type": "Prepend", "prepend": SPACE}
    plain = (
        all(map(_is_harmless, added))
        and _stand_apart(names)
        and all(map(_is_apart, normalizers[1:] if prepends else normalizers))
        and all(map(_is_known, words))
        and (any(map(_has_boundary, words)) or _tokens_have_one(description["model"]))
    )
    if not plain:
        return None
    begins = frozenset(
        row["content"]
        for row in added
        if row["content"] in names and not (row["normalized"] or row["lstrip"] or row["single_word"])
    )
    bare = any(map(_has_pattern, words)) and not any(map(_puts_in_front, words)) and not prepends
    kinds = [_SPACE, _NEWLINE, _STOP] if bare else [_SPACE]
    return Cuts(int(prepends), _places(names, kinds), begins, 2 * max(map(len, names), default=0))


def _is_harmless(added: Mapping[str, Any]) -> bool:
    """Whether where a token is found can be told from the text as it was written, away from white space."""
    name, strips = added["content"], added["lstrip"] or added["rstrip"]
    if not name.strip(_BLANKS):
        return len(name) > 1 and not strips
    return not (added["normalized"] and (strips or any(blank in name for blank in _BLANKS)))


def _stand_apart(names: Sequence[str]) -> bool:
    """Whether no name is inside another, or begins with another's end: then each is found wherever a search begins."""
    known = set(names)
    begins = {name[:at] for name in names for at in range(1, len(name))}
    return not any(name[at:] in begins for name in names for at in range(1, len(name))) and not any(
        name[low:high] in known and high - low < len(name)
        for name in names
        for low in range(len(name))
        for high in range(low + 1, len(name) + 1)
    )


def _is_apart(normalizer: Mapping[str, Any]) -> bool:
    return normalizer == SPACES or normalizer["type"] in _APART


def _is_known(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Split":
        pattern = step["pattern"]
        return "String" in pattern or not _looks_around(pattern["Regex"])
    return step["type"] in {"ByteLevel", "Metaspace", *_WORDS}


def _looks_around(regex: str) -> bool:
    """Whether a match may depend on more of what stands before it than where the last one ended."""
    without = re.sub(r"\\[pP]\{[^}]*\}|\\[^bBAzZGK1-9]", "L", regex)
    return _LOOKS_AROUND.search(re.sub(r"\[(?:\\.|[^\]\\])*\]", "C", without)) is not None


def _has_boundary(step: Mapping[str, Any]) -> bool:
    match step["type"]:
        case "ByteLevel":
            return bool(step["use_regex"])
        case "Metaspace":
            return bool(step.get("split", True))
        case "Split":
            return "Regex" in step["pattern"]
    return step["type"] in {"Whitespace", "WhitespaceSplit"}


def _has_pattern(step: Mapping[str, Any]) -> bool:
    """Whether words are found by a regular expression, as GPT-2's are."""
    return bool(step["type"] == "ByteLevel" and step["use_regex"]) or (
        step["type"] == "Split" and "Regex" in step["pattern"]
    )


def _puts_in_front(step: Mapping[str, Any]) -> bool:
    """Whether a text that begins with a letter gets a space."""
    return step["type"] == "Metaspace" or bool(step["type"] == "ByteLevel" and step["add_prefix_space"])


def _tokens_have_one(model: Mapping[str, Any]) -> bool:
    """Whether no token of a BPE vocabulary goes on after the end of a word."""
    whole = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    return model["type"] == "BPE" and whole and not any(map(_CROSSES.search, model["vocab"]))


_CROSSES = re.compile("[^ \u2581\u0120][ \u2581\u0120]")
"""A space of any spelling after something else."""


def _places(names: Sequence[str], kinds: Sequence[str]) -> re.Pattern[str]:
    """Finds names whole, and cuts as nothing, but for those right before a name or one character away from it."""
    listed = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    away = f"(?!.?(?:{listed}))" if listed else ""
    return re.compile("|".join([*([listed] if listed else []), *(kind + away for kind in kinds)]), re.DOTALL)
