"""What clients keep for a model and cannot read: text as opaque words, and back. Knows no item and no block.

It is no secret, for the client was sent the same words: it is opaque, so that clients pass it on as it is.
"""

import base64
import zlib
from typing import Literal

Kind = Literal["reasoning", "compaction", "thinking"]
MOST_BYTES = 16 << 20  # of text in one; more is not ours
_MARK = "cortex1"


def seal(kind: Kind, text: str) -> str:
    """`cortex1.KIND.…`."""
    return f"{_MARK}.{kind}.{base64.urlsafe_b64encode(zlib.compress(text.encode())).decode()}"


def unseal(kind: Kind, value: object) -> str | None:
    """The text that was sealed as `kind`; None for what another service has made, or what is broken."""
    if not isinstance(value, str) or not value.startswith(f"{_MARK}.{kind}."):
        return None
    try:
        packed = base64.urlsafe_b64decode(value.rpartition(".")[2])
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(packed, MOST_BYTES)
        return text.decode() if unpacking.eof else None
    except (ValueError, zlib.error):  # no base64, no ASCII, no UTF-8
        return None
