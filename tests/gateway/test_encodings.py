"""Compressed bodies: what comes out is what went in, never more than the limit, and what is broken is told."""

import gzip
import tracemalloc
from collections.abc import Callable

import brotli
import pytest

from cortex_gateway.encodings import ENCODINGS, plain, zstd
from cortex_gateway.errors import BodyTooLarge, MalformedJson

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
}
TEXT = bytes(range(256)) * 1000
every_encoding = pytest.mark.parametrize("encoding", sorted(ENCODINGS))


@every_encoding
def test_a_body_comes_out_as_it_was(encoding: str) -> None:
    """Up to the limit, and not a byte beyond."""
    packed = PACK[encoding](TEXT)

    assert plain(encoding, packed, len(TEXT)) == TEXT
    with pytest.raises(BodyTooLarge):
        plain(encoding, packed, len(TEXT) - 1)


@every_encoding
def test_a_small_body_of_much_makes_little(encoding: str) -> None:
    """A few kilobytes that would become 64 MB are given up at the limit."""
    packed = PACK[encoding](bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        plain(encoding, packed, 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(packed) < 128 << 10
    assert peak < 16 << 20


@every_encoding
@pytest.mark.parametrize("broken", ["cut", "other", "none"])
def test_what_is_not_compressed_so_is_told(encoding: str, broken: str) -> None:
    """Cut off, something else, or nothing at all: never half a body."""
    body = {"cut": PACK[encoding](TEXT)[:-5], "other": b'{"model":"demo"}', "none": b""}[broken]

    with pytest.raises(MalformedJson, match=encoding):
        plain(encoding, body, len(TEXT))
