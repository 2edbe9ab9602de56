"""Bytes of a file into arrays; knows files and numpy, must not know containers.

Read, not mapped: what is read this way is in memory once, and a file that shrinks meanwhile is an error instead of a
signal that ends the process.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from models.blocks import Array
from neuron_jax.weights.errors import bad_checkpoint


def open_file(path: Path) -> BinaryIO:
    """Raises WeightsError when it cannot be opened."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise bad_checkpoint(path, [f"cannot be read: {error}"]) from error


def read_into(file: BinaryIO, start: int, target: Array) -> None:
    """Fill `target` (contiguous) with the bytes from `start`. Raises WeightsError when the file ends before."""
    left: npt.NDArray[np.uint8] = target.reshape(-1, copy=False).view(np.uint8)
    while left.size:
        try:
            count = os.preadv(file.fileno(), [left.data], start)  # the system reads 2 GiB at most in one call
        except OSError as error:
            raise bad_checkpoint(file.name, [f"cannot be read: {error}"]) from error
        if not count:
            raise bad_checkpoint(file.name, [f"cut short: no byte {start}"])
        left, start = left[count:], start + count


def read_bytes(file: BinaryIO, start: int, count: int) -> bytes:
    """`count` bytes from `start`. Raises WeightsError when the file ends before."""
    raw = np.empty(count, np.uint8)
    read_into(file, start, raw)
    return raw.tobytes()
