"""JSON of any shape for hypothesis, with the words of a format as keys and values so that it gets beneath the surface."""

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st


def objects(words: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    """An object of any JSON under some of `words`."""
    return st.dictionaries(st.sampled_from(words), any_json(words), max_size=6)


def any_json(words: Sequence[str]) -> st.SearchStrategy[Any]:
    """Any JSON value; strings and keys are mostly from `words`."""
    text = st.one_of(st.sampled_from(words), st.text(max_size=3))
    numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
    leaves = st.one_of(st.none(), st.booleans(), numbers, text)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=5)),
        max_leaves=8,
    )
