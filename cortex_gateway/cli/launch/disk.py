"""Files of a setup on disk: merged, backed up before the first change, restored. Knows no client and no network.

The backup of a client is a folder with `manifest.json` and the old bytes of every file that there was. It is complete
before anything is changed, and is gone once all is as it was.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import asdict, define, frozen

from cortex_gateway.cli.api import CommandError
from cortex_gateway.cli.launch import jsonc
from cortex_gateway.cli.launch.setup import OwnFile, SharedFile

PRIVATE = 0o600


@define
class Kept:
    """A file as it was: `backup` names its old bytes in the folder, None if there was no file; `wrote` is our SHA-256.

    `folders` are those that were made for it, the outermost first.
    """

    path: str
    backup: str | None
    mode: int
    wrote: str
    folders: list[str]


@frozen
class Change:
    """A file to write, and what it must say."""

    path: pathlib.Path
    data: bytes


def planned(files: Sequence[OwnFile | SharedFile], place: pathlib.Path) -> list[Change]:
    """What applying `files` would write; `place` is the client's backup. Touches nothing. Raises CommandError."""
    known = {kept.path for kept in _read(place)}
    return [_change(file, known) for file in files]


def apply(changes: Iterable[Change], place: pathlib.Path) -> list[pathlib.Path]:
    """Write them, after the backup of those that are new to it. The paths that have changed. Raises CommandError."""
    kept = {one.path: one for one in _read(place)}
    todo = [change for change in changes if _bytes(change.path) != change.data]
    with _told(place):
        for change in todo:
            old = kept.get(str(change.path)) or _keep(change.path, place, len(kept))
            kept[old.path] = old
            old.wrote = _digest(change.data)
        if todo:
            _write(place / "manifest.json", _manifest(kept.values()), PRIVATE)
    for change in todo:
        with _told(change.path):
            change.path.parent.mkdir(parents=True, exist_ok=True)
            _write(change.path, change.data, kept[str(change.path)].mode)
    return [change.path for change in todo]


def undo(place: pathlib.Path) -> list[str]:
    """Put every file back as it was; what was changed since is kept beside it. What was done, as lines. Raises CommandError."""
    kept = _read(place)
    if not kept:
        raise CommandError("there is nothing to undo: no file was changed")
    old = [None if one.backup is None else _bytes(place / one.backup) for one in kept]
    if lost := [one.path for one, data in zip(kept, old, strict=True) if one.backup is not None and data is None]:
        raise CommandError(f"the backup of {lost[0]} is not in {place} any more; nothing was changed")
    done = [line for one, data in zip(kept, old, strict=True) for line in _restore(one, data)]
    with _told(place):
        shutil.rmtree(place)
    return done


def _change(file: OwnFile | SharedFile, known: set[str]) -> Change:
    if isinstance(file, SharedFile):
        path = _real(next((path for path in file.paths if pathlib.Path(path).exists()), file.paths[0]))
        return Change(path, _merged(path, file, first=str(path) not in known).encode())
    path = _real(file.path)
    if (old := _bytes(path)) is not None and str(path) not in known and old != file.text.encode():
        raise CommandError(f"{path} is there already and is not from `cortex launch`; move it away first")
    return Change(path, file.text.encode())


def _merged(path: pathlib.Path, file: SharedFile, *, first: bool) -> str:
    """What the file says, with our members in it. Raises CommandError."""
    try:
        text = (_bytes(path) or b"").decode()
        for member in file.members:
            if member.taken and first and jsonc.has(text, member.path):
                raise CommandError(
                    f"{path} has {'.'.join(member.path)} already; move it away first, nothing was changed"
                )
            text = jsonc.put(text, member.path, member.value, yields=member.yields)
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8 text; nothing was changed") from None
    except jsonc.JsoncError as error:
        raise CommandError(f"{path} cannot be merged with: {error}; nothing was changed") from error
    return text


def _real(path: str) -> pathlib.Path:
    """Behind links: a settings file that is one stays one."""
    return pathlib.Path(path).resolve()


def _keep(path: pathlib.Path, place: pathlib.Path, number: int) -> Kept:
    """The backup of `path` as it is now."""
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = _bytes(path)
    folders = [str(folder) for folder in reversed(path.parents) if not folder.exists()]
    if data is None:
        return Kept(str(path), None, PRIVATE, "", folders)
    _write(place / str(number), data, PRIVATE)
    return Kept(str(path), str(number), path.stat().st_mode & 0o7777, "", folders)


def _restore(kept: Kept, old: bytes | None) -> list[str]:
    """Lines that say what was done."""
    path, lines = pathlib.Path(kept.path), []
    with _told(path):
        now = _bytes(path)
        if now is not None and now != old and _digest(now) != kept.wrote:
            beside = _free(path)
            _write(beside, now, kept.mode)
            lines.append(f"{path} was changed since; that version is {beside}")
        if old is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, old, kept.mode)
            return [*lines, f"{path} is as it was"]
        path.unlink(missing_ok=True)
        for folder in reversed(kept.folders):
            with contextlib.suppress(OSError):  # something else is in it, or it is gone
                pathlib.Path(folder).rmdir()
    return [*lines, f"{path} is gone again"]


def _free(path: pathlib.Path) -> pathlib.Path:
    names = (path.with_name(f"{path.name}.before-undo{number or ''}") for number in range(1000))
    return next(name for name in names if not name.exists())


def _read(place: pathlib.Path) -> list[Kept]:
    """What was kept; nothing where there is no backup."""
    data = _bytes(place / "manifest.json")
    try:
        return [Kept(**one) for one in json.loads(data)["files"]] if data is not None else []
    except (ValueError, TypeError, KeyError) as error:
        raise CommandError(
            f"{place / 'manifest.json'} is not what `cortex launch` wrote; nothing was changed"
        ) from error


def _manifest(kept: Iterable[Kept]) -> bytes:
    files: list[dict[str, Any]] = [asdict(one) for one in kept]
    return json.dumps({"files": files}, indent=2).encode()


def _bytes(path: pathlib.Path) -> bytes | None:
    """None where there is no file. Raises CommandError."""
    with _told(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


def _write(path: pathlib.Path, data: bytes, mode: int) -> None:
    """All of it or nothing: whoever reads meanwhile sees the old file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    """A failure of the disk as a sentence."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
