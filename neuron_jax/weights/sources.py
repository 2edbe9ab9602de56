"""Where a model's files are and how they get here: built-in, folder, .gguf file or hub; must not know jax or routes."""

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from neuron_jax.weights import hub
from neuron_jax.weights.builtin import BUILT_IN, BuiltInFolder, BuiltInModel, fetch_built_in, local_file
from neuron_jax.weights.download import Report
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.gguf_parts import part_names, whole_models
from neuron_jax.weights.hub import Hub

__all__ = [
    "BUILT_IN",
    "BuiltIn",
    "BuiltInFolder",
    "BuiltInModel",
    "Folder",
    "GgufSource",
    "Hub",
    "LocalModel",
    "Report",
    "Source",
    "fetch",
    "local_models",
    "locate",
    "parse_source",
]


@frozen
class BuiltIn:
    """A key of BUILT_IN."""

    name: str


@frozen
class Folder:
    """A local folder with config.json and safetensors, or with the files of one GGUF model."""

    path: Path


@frozen
class GgufSource:
    """A local .gguf file."""

    path: Path


@frozen
class LocalModel:
    """A model in the cache; `path` is what `open_checkpoint` takes."""

    id: str
    path: Path


Source = BuiltIn | Folder | GgufSource | Hub

PATH_STARTS = ("/", ".", "~")
_HUB = re.compile(  # the hub's own names are shorter; longer ones would be too long for a file
    r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[^:@\s]{1,200}))?(?::(?P<file>[^:\s]{1,200}))?"
)


def parse_source(model: str) -> Source:
    """A built-in name, a folder, a path ending in .gguf, or `[hf:]org/name[@revision][:file.gguf]`, in this order.

    Raises WeightsError for anything else.
    """
    built_in = next((id_ for id_, entry in BUILT_IN.items() if model in (id_, *entry.aliases)), None)
    if built_in is not None:
        return BuiltIn(built_in)
    path = _as_path(model)
    if path is not None:
        return GgufSource(path) if path.suffix == ".gguf" else Folder(path)
    match = _HUB.fullmatch(model.removeprefix("hf:"))
    if match is None:
        known = ", ".join(BUILT_IN)
        raise WeightsError(
            "repo_fetch_failed",
            f"{model!r} is no model: give a built-in name ({known}), a folder, a .gguf file, or org/name on the hub",
        )
    return Hub(match["repo"], match["revision"], match["file"])


def _as_path(model: str) -> Path | None:
    """The path that `model` is, whether something is there or not; None when it is no path."""
    if not model or model.startswith("hf:"):
        return None
    try:
        path = Path(model).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long for the file system; a home of nobody
        if model.startswith(PATH_STARTS):
            raise WeightsError("repo_fetch_failed", f"{model!r} is no path: {error}") from error
        return None
    return path if there or model.startswith(PATH_STARTS) else None


def locate(source: Source, cache: Path) -> Path | None:
    """What `open_checkpoint` takes when the files are here, else None. Never the network."""
    match source:
        case BuiltIn(name):
            return local_file(BUILT_IN[name], cache)
        case Folder(path):
            return path if (path / "config.json").is_file() else _only_gguf(path)
        case GgufSource(path):
            return path if path.is_file() else None
        case Hub():
            return hub.locate(source, cache)


def fetch(source: Source, cache: Path, report: Report) -> Path:
    """The same, getting the files when they are not here; blocks. Raises WeightsError."""
    match source:
        case BuiltIn(name):
            return local_file(BUILT_IN[name], cache) or fetch_built_in(BUILT_IN[name], cache, report)
        case Hub():
            return hub.locate(source, cache) or hub.fetch(source, cache, report)
        case Folder(path) | GgufSource(path):
            found = locate(source, cache)
            if found is None:
                raise WeightsError("repo_fetch_failed", f"{path} {_unusable(source)}")
            return found


def absent(source: Source) -> str | None:
    """Why a path of this host holds no model; None where it does, and for what can be fetched."""
    if isinstance(source, Folder | GgufSource) and locate(source, Path()) is None:
        return f"{source.path} {_unusable(source)}"
    return None


def _only_gguf(folder: Path) -> Path | None:
    """The first file of the only GGUF model in a folder."""
    models = whole_models(path.name for path in folder.glob("*.gguf"))
    return folder / models[0][0] if len(models) == 1 else None


def _unusable(source: Folder | GgufSource) -> str:
    """Why there is no model at this path."""
    if isinstance(source, GgufSource):
        return "is not a .gguf file"
    names = sorted(path.name for path in source.path.glob("*.gguf"))
    if len(models := whole_models(names)) > 1:
        return f"holds {len(models)} GGUF models; give the path of one: {', '.join(files[0] for files in models)}"
    missing = sorted({part for name in names for part in part_names(name)} - set(names))
    return f"lacks {', '.join(missing)}" if missing else "is not a folder with config.json, nor one with .gguf files"


def local_models(cache: Path) -> list[LocalModel]:
    """Every model in the cache that is whole."""
    return list(_local_models(cache))


def _local_models(cache: Path) -> Iterator[LocalModel]:
    for id_, model in BUILT_IN.items():
        path = local_file(model, cache)
        if path is not None:
            yield LocalModel(id_, path)
    for id_, path in hub.local(cache):
        yield LocalModel(id_, path)
