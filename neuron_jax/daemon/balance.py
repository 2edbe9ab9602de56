"""Which of a model's engines a request goes to; pure, must not know engines or processes."""

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b

PREFIX_IDS = 512
"""How much of a prompt's beginning says which engine may have its pages: some KB of text."""

ABOUT_EQUAL = 2
"""An engine may have so many more submissions open than another and still count as no busier."""


def choose(open_: Mapping[int, int], prompt: Sequence[int]) -> int:
    """One of the engines in `open_`, which says how many submissions each has open.

    The least busy one; among those about as busy, the one that prompts with this beginning go to, which has its pages. Each
    engine that leaves or comes moves only the prompts that are its own.
    """
    least = min(open_.values())
    free = [index for index, count in open_.items() if count <= least + ABOUT_EQUAL]
    beginning = array("q", prompt[:PREFIX_IDS]).tobytes()
    return max(free, key=lambda index: blake2b(beginning, digest_size=8, salt=b"%d" % index).digest())
