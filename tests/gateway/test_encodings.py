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


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_parts_behind_one_another_are_one_body(encoding: str) -> None:
    """A client that compresses piece by piece writes several; what is behind them must be another, and whole."""
    pack, half = PACK[encoding], len(TEXT) // 2
    packed = pack(TEXT[:half]) + pack(TEXT[half:])

    assert plain(encoding, packed, len(TEXT)) == TEXT
    with pytest.raises(BodyTooLarge):
        plain(encoding, packed, len(TEXT) - 1)
    for broken in (packed[:-5], packed + b"junk"):
        with pytest.raises(MalformedJson, match=encoding):
            plain(encoding, broken, len(TEXT))


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_many_small_parts_are_given_up_at_once(encoding: str) -> None:
    """Each costs a copy of what is behind it, so a megabyte of them would take a minute."""
    with pytest.raises(MalformedJson, match="more than 16"):
        plain(encoding, PACK[encoding](b"") * 50_000, len(TEXT))


def test_zeros_behind_gzip_and_frames_to_be_skipped_are_nothing() -> None:
    assert plain("gzip", gzip.compress(TEXT) + bytes(9), len(TEXT)) == TEXT
    assert plain("zstd", b"\x50\x2a\x4d\x18\x04\0\0\0skip" + zstd.compress(TEXT), len(TEXT)) == TEXT
