"""`cortex config import`: reads the predecessor's files, writes ours, tells what became of each key. Knows no HTTP."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Annotated, Any

import attrs
import tomlkit
import tomlkit.exceptions
from attrs import frozen
from cyclopts import App, Parameter

from cortex_gateway.cli import tables
from cortex_gateway.cli.api import CommandError
from cortex_gateway.cli.moving import cortex_toml, models_toml, neuron_toml, theirs
from cortex_gateway.cli.moving.notes import Notes, Table
from cortex_gateway.config import ConfigError, load_config

NAMES = ("cortex.toml", "models.toml", "neuron.toml")
CATALOGUE = pathlib.Path("/etc/cortex/models.toml")
"""Where the predecessor looks for it unless told otherwise."""
STATE = "/var/lib/cortex/cortex-state.db"
"""The database's place for a gateway whose configuration is in /etc, where it may not write."""
FETCHED = pathlib.Path("/var/lib/neuron/.cache/huggingface/hub")
"""Where the predecessor's service keeps what it fetches unless told otherwise."""

app = App(name="config", help="Have a gateway read its files again, or bring a predecessor's over.")


@frozen
class Imported:
    """One file: where it was, what it is now, what there is to tell."""

    read: pathlib.Path
    text: str
    notes: Notes


@app.command(name="import")
def import_(
    *places: Annotated[
        pathlib.Path, Parameter(help="Folders with cortex.toml, models.toml or neuron.toml; or the files.")
    ],
    out: Annotated[
        pathlib.Path | None, Parameter(help="The folder to write to. Absent: where each file was, which needs --force.")
    ] = None,
    force: Annotated[
        bool, Parameter(negative="", help="Write over files; each is kept as FILE.before-import.")
    ] = False,
    json: Annotated[bool, Parameter(negative="", help="Print what became of the keys as JSON.")] = False,
) -> int:
    """Write our cortex.toml, models.toml and neuron.toml from helexa's; name what changed and what is gone."""
    found = _found(places or (pathlib.Path("/etc/cortex"), pathlib.Path("/etc/neuron")))
    imported = imports(found, out, os.environ)
    targets = {one.read: (out or one.read.parent) / one.read.name for one in imported}
    taken = [str(target) for target in targets.values() if target.exists() or target.is_symlink()]
    if taken and not force:
        raise CommandError(f"{', '.join(taken)}: there already; give --out DIR, or --force, which keeps the old file")
    _check(imported)
    for one in imported:
        _write(one, targets[one.read])
    told = [
        {
            "read": str(one.read),
            "written": str(targets[one.read]),
            "notes": [attrs.asdict(note) for note in one.notes.all],
        }
        for one in imported
    ]
    if json:
        tables.print_json(told)
    else:
        _show(told)
    return 0


def imports(
    found: Mapping[str, pathlib.Path], out: pathlib.Path | None, environ: Mapping[str, str]
) -> tuple[Imported, ...]:
    """Each file as ours. Raises CommandError for one that cannot be read, or is ours already."""
    read = {name: _read(path) for name, path in found.items()}
    done: dict[str, Notes] = {}
    ranked = models_toml.ranked(read["models.toml"]) if "models.toml" in read else False
    if "models.toml" in read:
        nodes = cortex_toml.names(read["cortex.toml"]) if "cortex.toml" in read else None
        done["models.toml"] = models_toml.convert(read["models.toml"], nodes)
    if "cortex.toml" in read:
        folder = (out or found["cortex.toml"].parent).absolute()
        there = folder if out else found.get("models.toml", folder).parent.absolute()
        done["cortex.toml"] = cortex_toml.convert(
            read["cortex.toml"],
            models=None
            if "models.toml" not in read
            else "models.toml"
            if there == folder
            else str(found["models.toml"]),
            ranked=ranked,
            state=STATE if folder.is_relative_to("/etc") else None,
        )
    if "neuron.toml" in read:
        places = [environ.get("HF_HUB_CACHE"), environ.get("HF_HOME") and f"{environ['HF_HOME']}/hub", str(FETCHED)]
        others = [place for place in places if place]
        done["neuron.toml"] = neuron_toml.convert(
            read["neuron.toml"], lambda caches, repo, tag: fetched([*caches, *others], repo, tag)
        )
    return tuple(Imported(found[name], tomlkit.dumps(read[name]), done[name]) for name in NAMES if name in read)


def fetched(caches: list[str], repo: str, tag: str | None) -> str | None:
    """A folder that hf-hub has filled for `repo`, or of its GGUF files the one with `tag` in its name."""
    for cache in caches:
        folder = pathlib.Path(cache) / f"models--{repo.replace('/', '--')}"
        try:
            snapshot = folder / "snapshots" / (folder / "refs/main").read_text().strip()
            names = {path.name for path in snapshot.iterdir()}
        except OSError:
            continue
        if tag is None and "config.json" in names and any(name.endswith(".safetensors") for name in names):
            return str(snapshot)
        files = [name for name in names if name.endswith(".gguf") and tag and tag.lower() in name.lower()]
        if len(files) == 1:
            return str(snapshot / files[0])
    return None


def _found(places: tuple[pathlib.Path, ...]) -> dict[str, pathlib.Path]:
    """The files by their names, and the catalogue that a cortex.toml names. Raises CommandError."""
    found: dict[str, pathlib.Path] = {}
    for place in places:
        files = [place] if place.is_file() else [place / name for name in NAMES if (place / name).is_file()]
        for file in files:
            if file.name not in NAMES:
                raise CommandError(f"{file}: its name must be one of {', '.join(NAMES)}")
            if file.name in found:
                raise CommandError(f"{found[file.name]} and {file}: of a kind one at a time")
            found[file.name] = file
    if not found:
        raise CommandError(f"{', '.join(map(str, places))}: there is no {', '.join(NAMES[:-1])} or {NAMES[-1]}")
    if "cortex.toml" in found and "models.toml" not in found:
        named = pathlib.Path(str(_read(found["cortex.toml"]).get("models_config", CATALOGUE)))
        if named.is_file() and named.name == "models.toml":
            found["models.toml"] = named
    return found


def _read(path: pathlib.Path) -> Table:
    """A file as the predecessor would take it. Raises CommandError, ConfigError."""
    try:
        table: Any = tomlkit.parse(path.read_text("utf-8"))
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomlkit.exceptions.ParseError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: not valid TOML: {error}") from error
    ours = {"cortex.toml": cortex_toml.OURS, "neuron.toml": neuron_toml.OURS}.get(path.name, set())
    if known := sorted(ours & set(table)):
        raise CommandError(f"{path}: is one of ours already: helexa has no {', '.join(known)}")
    theirs.check(table.unwrap(), path.name, str(path))
    found: Table = table
    return found


def _check(imported: tuple[Imported, ...]) -> None:
    """What the gateway would refuse is told now, before anything is written. Raises ConfigError."""
    with tempfile.TemporaryDirectory() as folder:
        for one in imported:
            (pathlib.Path(folder) / one.read.name).write_text(one.text, "utf-8")
        path = pathlib.Path(folder) / "cortex.toml"
        if not path.is_file():
            return
        try:
            load_config(path, {})
        except ConfigError as error:
            raise ConfigError([problem.replace(f"{folder}/", "") for problem in error.problems]) from None


def _write(one: Imported, target: pathlib.Path) -> None:
    """With the mode and the owner that the file had: it may hold secrets. Raises CommandError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            shutil.copy2(target, target.with_name(f"{target.name}.before-import"))
        told = one.read.stat()
        fresh = target.with_name(f".{target.name}.new")
        fresh.touch(mode=0o600)
        fresh.write_text(one.text, "utf-8")
        if os.geteuid() == 0:
            os.chown(fresh, told.st_uid, told.st_gid)
        fresh.chmod(told.st_mode & 0o777)
        fresh.replace(target)
    except OSError as error:
        raise CommandError(f"{target}: cannot be written: {error.strerror}") from error


def _show(told: list[dict[str, Any]]) -> None:
    out = tables.console()
    for one in told:
        out.print(f"{one['read']} -> {one['written']}", markup=False, highlight=False, soft_wrap=True)
        for note in one["notes"]:
            line = f"  {note['kind']:<8} {note['key']}: {note['words']}"
            out.print(line, markup=False, highlight=False, soft_wrap=True)
