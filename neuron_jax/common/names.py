"""Which of the known words looks most like a wrong one; knows strings alone. Whoever wrote the word may be anybody."""

import difflib
from collections.abc import Iterable

LONGEST_NAME = 512
"""Characters of a model's name. Ids of hubs have at most two hundred."""


def nearest(word: str, known: Iterable[str], count: int, cutoff: float) -> list[str]:
    """Up to `count` of `known` that are alike by at least `cutoff`, the nearest first.

    difflib takes time by the square of a word's length before it looks at anything, so what cannot be alike for its
    length is left out first. Source: ratio() in https://docs.python.org/3/library/difflib.html
    """
    able = [one for one in known if 2 * min(len(one), len(word)) >= cutoff * (len(one) + len(word))]
    return difflib.get_close_matches(word, able, count, cutoff) if able else []
