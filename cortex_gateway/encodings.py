"""Compressed bodies made plain, up to a size; knows no HTTP and no JSON."""

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import brotli

from cortex_gateway.errors import BodyTooLarge, MalformedJson

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP = 16 + zlib.MAX_WBITS  # zlib's number for gzip's head and end
WINDOW_LOG = 27  # of zstd: 128 MiB, as its own program takes without being asked to
MOST_PARTS = 16
Plain = Callable[[bytes, int], tuple[bytes, bool]]


def plain(encoding: str, body: bytes, limit_bytes: int) -> bytes:
    """`body`, which has one of `ENCODINGS`. Never makes much more than `limit_bytes`. Raises BodyTooLarge, MalformedJson."""
    try:
        made, whole = ENCODINGS[encoding](body, limit_bytes + 1)
    except (zlib.error, brotli.error, zstd.ZstdError) as error:
        raise MalformedJson(f"The body is not {encoding}, as its content-encoding says: {error}.") from error
    if len(made) > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    if not whole:
        raise MalformedJson(f"The body's {encoding} ends too early.")
    return made


def _gzip(body: bytes, most: int) -> tuple[bytes, bool]:
    """Zeros may fill up the end, as gzip's own program lets them."""
    return _parts(body, most, lambda: zlib.decompressobj(GZIP), padding=b"\0")


def _brotli(body: bytes, most: int) -> tuple[bytes, bool]:
    """It may give a block more than is asked for, and takes no more input while it holds some back."""
    unpacking = brotli.Decompressor()
    pieces = [unpacking.process(body, output_buffer_limit=most)]
    size = len(pieces[0])
    while size < most and not unpacking.is_finished() and not unpacking.can_accept_more_data():
        pieces.append(unpacking.process(b"", output_buffer_limit=most - size))
        size += len(pieces[-1])
    return b"".join(pieces), unpacking.is_finished()


def _zstd(body: bytes, most: int) -> tuple[bytes, bool]:
    options: Mapping[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    return _parts(body, most, lambda: zstd.ZstdDecompressor(options=options))


def _parts(body: bytes, most: int, unpacker: Callable[[], Any], padding: bytes = b"") -> tuple[bytes, bool]:
    """Gzip's members (RFC 1952, 2.2) and Zstandard's frames (RFC 8878, 3) may follow one another. Raises MalformedJson.

    What is left of the body is copied for each, so many small ones would take minutes.
    """
    made, rest = bytearray(), body
    for _ in range(MOST_PARTS):
        unpacking = unpacker()
        made += unpacking.decompress(rest, most - len(made))
        rest = unpacking.unused_data
        if not unpacking.eof or not rest.strip(padding) or len(made) == most:
            return bytes(made), unpacking.eof
    raise MalformedJson(f"The body has more than {MOST_PARTS} compressed parts behind one another.")


ENCODINGS: Mapping[str, Plain] = {"gzip": _gzip, "x-gzip": _gzip, "br": _brotli, "zstd": _zstd}
