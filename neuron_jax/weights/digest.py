"""What identifies a checkpoint's files in a few characters; knows files, must not know formats or jax.

Read are the small files, and of large ones samples: training changes every tensor, and so every sample. Hashing all of an 8B
model would take as long as loading it.
"""

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from neuron_jax.weights.gguf_parts import part_names

KINDS = (".json", ".safetensors", ".jinja", ".model")
"""What a model's files are called; whatever else lies beside them is not the model."""

SAMPLES, SAMPLE = 64, 4096
"""How many places of a file are read, and how many bytes at each."""


def digest(path: Path) -> str:
    """16 hex digits of what `open_checkpoint` takes: the same for the same files, wherever they are and whenever they came.
    Raises OSError."""
    found = blake2b(digest_size=8)
    for file in _files(path):
        size = file.stat().st_size
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        found.update(f"{name}\0{size}\0".encode())
        for sample in _samples(file, size):
            found.update(sample)
    return found.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        every = [*(file for kind in KINDS for file in path.glob(f"*{kind}")), *(path / "params").rglob("*")]
        return sorted(file for file in every if file.is_file())
    return [path.with_name(name) for name in part_names(path.name) or [path.name]]


def _samples(file: Path, size: int) -> Iterator[bytes]:
    with file.open("rb") as opened:
        if size <= SAMPLES * SAMPLE:
            yield opened.read()
            return
        for number in range(SAMPLES):
            yield os.pread(opened.fileno(), SAMPLE, number * (size - SAMPLE) // (SAMPLES - 1))
