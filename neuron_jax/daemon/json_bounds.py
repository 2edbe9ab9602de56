"""How much a JSON text would become in memory, told from its bytes before anything is made of it; knows no fields.

Three bytes of JSON, `[],`, are seventy as Python objects: a body within its own limit can still be far too much.
"""

import re
from itertools import islice

MAX_VALUES = 1_000_000
"""JSON values in one body, each comma and opening bracket counted as one: at most some 100 MB of objects."""

_OPENER_OR_STRING = re.compile(rb'([,\[{])|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string that the body leaves open counts as one: whatever begins with a quote is passed over at once."""


def has_too_many_values(body: bytes | bytearray, most: int = MAX_VALUES) -> bool:
    """Whether `body` has more than `most` commas and opening brackets outside its strings."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= most:  # those inside strings included, as ordinary bodies have them
        return False
    outside = (found.lastindex for found in _OPENER_OR_STRING.finditer(body))
    return next(islice(filter(None, outside), most, None), None) is not None
