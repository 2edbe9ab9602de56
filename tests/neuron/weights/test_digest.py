"""The digest of a checkpoint's files: what it tells apart, and what it does not look at."""

import os
from pathlib import Path

from neuron_jax.weights.digest import SAMPLE, SAMPLES, digest


def test_it_follows_the_content(tmp_path: Path) -> None:
    """Of small files every byte, of large ones what training changes; a converted folder's arrays, and all parts of a GGUF."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "params").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "params" / "a").write_bytes(bytes(2 * SAMPLES * SAMPLE))
        for part in (1, 2):
            (folder / f"m-0000{part}-of-00002.gguf").write_bytes(b"part")
    os.utime(other / "config.json", (0, 0))
    first = digest(one)
    parts = digest(one / "m-00001-of-00002.gguf")

    assert first == digest(other)
    assert parts == digest(other / "m-00002-of-00002.gguf")
    (other / "params" / "a").write_bytes(os.urandom(2 * SAMPLES * SAMPLE))
    assert digest(other) != first
    (one / "config.json").write_text("[]")
    (one / "m-00002-of-00002.gguf").write_bytes(b"trap")
    assert digest(one) != first
    assert digest(one / "m-00001-of-00002.gguf") != parts
