"""How long a name may be, and which known name it looks most like; knows strings, which anybody may have sent."""

import difflib
from collections.abc import Iterable

LONGEST_NAME = 512
"""Characters of a model's name. Ids of hubs have at most two hundred."""


def too_long(name: str) -> str | None:
    """What is wrong with `name`, as the end of a sentence that begins with its field."""
    if len(name) <= LONGEST_NAME:
        return None
    return f"must be a string of at most {LONGEST_NAME} characters, found one of {len(name)}"


def nearest(word: str, known: Iterable[str], count: int, cutoff: float) -> list[str]:
    """Up to `count` of `known` that are alike by at least `cutoff`, the nearest first.

    difflib takes time by the square of a word's length before it looks at anything, so what cannot be alike for its
    length is left out first. Source: ratio() in https://docs.python.org/3/library/difflib.html
    """
    able = [one for one in known if 2 * min(len(one), len(word)) >= cutoff * (len(one) + len(word))]
    return difflib.get_close_matches(word, able, count, cutoff) if able else []
