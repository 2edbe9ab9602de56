"""Bytes of a file into arrays; knows files and numpy, must not know containers.

Read, not mapped: what is read this way is in memory once, and a file that shrinks meanwhile is an error instead of a
signal that ends the process.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from models.storage import Array
from neuron_jax.weights.errors import bad_checkpoint

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small file begins that git keeps in place of one that Git LFS has: git-lfs, docs/spec.md."""
MAX_WHOLE = 256 * 1024 * 1024
"""Bytes of a file that is read at once. The longest tokenizer.json known has some 35 MB."""


def open_file(path: Path) -> BinaryIO:
    """Raises WeightsError when it cannot be opened, or is not the file itself."""
    try:
        # A pipe that nobody writes into would be waited for, and a device never ends.
        file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except OSError as error:
        raise bad_checkpoint(path, [_unreadable(path, error)]) from error
    try:
        _refuse_other_kinds(path, os.fstat(file.fileno()).st_mode)
        _refuse_pointer(path, os.pread(file.fileno(), len(LFS_POINTER), 0))
    except BaseException:
        file.close()
        raise
    return file


def read_whole(path: Path) -> bytes:
    """All of a file of at most MAX_WHOLE bytes. Raises WeightsError as `open_file`."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_WHOLE:
            raise bad_checkpoint(path, [f"has {size} bytes; at most {MAX_WHOLE} are read"])
        return read_bytes(file, 0, size)


def read_text(path: Path) -> str:
    """The same as text. Raises WeightsError also where it is not UTF-8."""
    try:
        return read_whole(path).decode()
    except UnicodeDecodeError as error:
        raise bad_checkpoint(path, [f"not UTF-8: {error}"]) from error


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is a link to a file that is not there" if path.is_symlink() else "is not there"
    return f"cannot be read: {error.strerror or error}"


def _refuse_other_kinds(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise bad_checkpoint(path, ["is no file, but a pipe or a device"])


def _refuse_pointer(path: Path, begin: bytes) -> None:
    if begin.startswith(LFS_POINTER):
        raise bad_checkpoint(path, ["a Git LFS pointer in place of the file: run `git lfs pull` in its folder"])


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
