"""Which of a model's engines a request goes to; pure, must not know engines or processes."""

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from attrs import frozen

PREFIX_IDS = 512
"""How much of a prompt's beginning says which engine may have its pages: some KB of text."""

ABOUT_EQUAL = 2
"""An engine may have so many more submissions open than another and still count as no busier."""


@frozen
class Busy:
    """How many submissions an engine has open, and how many it works on at once."""

    open: int
    slots: int


def choose(engines: Mapping[int, Busy], prompt: Sequence[int]) -> int:
    """One of `engines`, by its index.

    The least busy one; among those about as busy that have a free slot, the one that prompts with this beginning go to: it
    has their pages. Each engine that leaves or comes moves only the prompts that are its own.
    """
    least = min(one.open for one in engines.values())
    free = [
        index
        for index, one in engines.items()
        if one.open == least or (one.open <= least + ABOUT_EQUAL and one.open < one.slots)
    ]
    beginning = array("q", prompt[:PREFIX_IDS]).tobytes()
    return max(free, key=lambda index: blake2b(beginning, digest_size=8, salt=b"%d" % index).digest())
