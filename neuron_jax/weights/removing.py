"""Takes models out of the cache again; knows where sources keep files, must not know what is in them."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from neuron_jax.weights.gguf_parts import part_names
from neuron_jax.weights.hub import Hub, folder_of
from neuron_jax.weights.sources import BuiltIn, Source, locate


def files_of(path: Path) -> list[Path]:
    """All files of a model at `path`, as `open_checkpoint` takes it: a folder's but for GGUF models in it, or its parts."""
    if path.is_dir():
        return [file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".gguf"]
    return [file for file in map(path.with_name, part_names(path.name)) if file.is_file()]


def size_of(path: Path) -> int:
    """Bytes of all these files."""
    return sum(file.stat().st_size for file in files_of(path))


def remove(source: Source, cache: Path) -> int:
    """Delete what the cache has of a built-in model or one of the hub, whole or on its way; the bytes that were freed.

    Other models in the same folder stay. A running engine that has read its weights is not touched. Paths of the user's own
    are none of the cache's: those are not for here.
    """
    assert isinstance(source, BuiltIn | Hub), f"{source} is not kept in the cache"
    path = locate(source, cache)
    freed = 0
    if path is not None and isinstance(source, Hub):
        freed = _delete(files_of(path))
        left = path if path.is_dir() else path.parent
        if not any(file.suffix == ".gguf" or file.name == "config.json" for file in left.rglob("*")):
            freed += _delete_folder(left)
    if isinstance(source, BuiltIn):
        freed += _delete_folder(cache / source.name) + _delete_folder(cache / ".partial" / source.name)
        return freed + _delete((cache / ".partial").glob(f"{source.name}.*.whl"))
    return freed + _delete_folder(folder_of(source, cache / ".partial"))


def _delete(files: Iterable[Path]) -> int:
    freed = 0
    for file in files:
        freed += file.stat().st_size
        file.unlink()
    return freed


def _delete_folder(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    freed = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    shutil.rmtree(folder)
    return freed
