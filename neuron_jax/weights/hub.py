"""Model repositories of the Hugging Face hub, kept in folders of our own cache; must not know jax or routes.

<cache>/hub/<org>/<name>@<revision>/   what is here is whole: files arrive by rename, config.json last
<cache>/.partial/hub/...               what is on its way; a later fetch goes on from it
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from attrs import frozen

from neuron_jax.weights.download import Report, check_hash
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.gguf_parts import whole_models
from neuron_jax.weights.lock import alone
from neuron_jax.weights.modules import FILE as MODULES_FILE
from neuron_jax.weights.modules import SETTINGS
from neuron_jax.weights.safetensors import INDEX, SINGLE, files_of_index

_BESIDE = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
)
_TOKENIZERS = ("tokenizer.json", "tekken.json", "tokenizer.model")
"""The first of them that there is; the others say the same."""
_OF_MODULE = re.compile(r"\d+_\w+/(config\.json|model\.safetensors)")
_MAIN = "main"


@frozen
class Hub:
    """`file` is a .gguf file of the repository, or a part of its name such as Q4_K_M; None takes the safetensors."""

    repo: str
    revision: str | None = None
    file: str | None = None


def folder_of(source: Hub, root: Path) -> Path:
    """Where the source's files are kept under `root`."""
    org, _, name = source.repo.partition("/")
    return root / "hub" / org / f"{name}@{quote(source.revision or _MAIN, safe='')}"


def locate(source: Hub, cache: Path) -> Path | None:
    """What is in the cache for the source; of a model in several files the first."""
    folder = folder_of(source, cache)
    if source.file is None and (folder / "config.json").is_file():
        return folder
    matching = _matching(source, (path.name for path in folder.glob("*.gguf")))
    return folder / matching[0][0] if len(matching) == 1 else None


def local(cache: Path) -> Iterator[tuple[str, Path]]:
    """(id, path) of everything in the cache that came from the hub."""
    for folder in sorted((cache / "hub").glob("*/*@*")):
        name, _, revision = folder.name.rpartition("@")
        suffix = "" if revision == _MAIN else f"@{unquote(revision)}"
        id_ = f"{folder.parent.name}/{name}{suffix}"
        if (folder / "config.json").is_file():
            yield id_, folder
        ggufs = whole_models(path.name for path in folder.glob("*.gguf"))
        for first, *_ in ggufs:
            alone = len(ggufs) == 1 and not (folder / "config.json").is_file()
            yield (id_ if alone else f"{id_}:{first}"), folder / first


def fetch(source: Hub, cache: Path, report: Report, *, endpoint: str | None = None) -> Path:
    """Download what the source names; blocks, resumes. `endpoint` is another hub than the configured one.

    A second fetch of the same folder waits for the first. Raises WeightsError: repo_fetch_failed, empty_repo,
    bad_checkpoint, or quant_not_found with the names that are there.
    """
    partial, folder = folder_of(source, cache / ".partial"), folder_of(source, cache)
    partial.mkdir(parents=True, exist_ok=True)
    with alone(partial.with_name(f"{partial.name}.lock")):
        if (found := locate(source, cache)) is not None:
            return found
        names = _fetch_files(source, partial, report, endpoint)
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: name == "config.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (partial / name).replace(folder / name)
    found = locate(source, cache)
    assert found is not None, f"{source} is not where it was put"
    return found


def _fetch_files(source: Hub, folder: Path, report: Report, endpoint: str | None) -> list[str]:
    """The names of what the source means, each whole in `folder`."""
    listed = _listing(source, endpoint)
    sizes = {name: one.size for name, one in listed.items()}
    names = choose(source, list(sizes))
    if INDEX in names:  # first: it says which of the other files there are to fetch
        _download(source, INDEX, folder, _progress(_silent, 0), endpoint)
        names = _of_index(source, folder / INDEX, names)
    progress = _progress(report, sum(sizes[name] for name in names))
    for name in names:
        _download(source, name, folder, progress, endpoint)
        if (sha256 := listed[name].sha256) is not None:
            check_hash(folder / name, sha256)
    return [*names, INDEX] if (folder / INDEX).is_file() and INDEX in sizes else names


def _of_index(source: Hub, index: Path, names: Sequence[str]) -> list[str]:
    """Of `names`, the weights that the index names and what is beside them."""
    shards = set(files_of_index(index).values())
    if missing := sorted(shards - set(names)):
        raise WeightsError(
            "repo_fetch_failed", f"{source.repo}: {INDEX} names {', '.join(missing)}, which is not there"
        )
    return [name for name in names if name in shards or (not _is_weights(name) and name != INDEX)]


def choose(source: Hub, names: Sequence[str]) -> list[str]:
    """Which files of a repository the source means. Raises WeightsError."""
    ggufs = [name for name in names if name.endswith(".gguf") and "/" not in name]
    weights = _weights(names)
    if source.file is None and weights and "config.json" in names:
        return [*weights, *(name for name in _BESIDE if name in names), *_modules(names), *_tokenizer(names)]
    if not ggufs:
        raise WeightsError("empty_repo", f"{source.repo} has neither config.json with safetensors nor .gguf files")
    matching = _matching(source, ggufs)
    if len(matching) != 1:
        asked = f"{len(matching)} models match {source.file!r}" if source.file else "no file was named"
        message = f"{source.repo}: {asked}; name one as {source.repo}:FILE, FILE being one of {', '.join(ggufs)}"
        raise WeightsError("quant_not_found", message, {"available": ggufs})
    return list(matching[0])


def _modules(names: Sequence[str]) -> list[str]:
    """What sentence-transformers writes beside a model that embeds or scores; without it the same decoder would chat."""
    if MODULES_FILE not in names:
        return []
    return [name for name in names if name in (MODULES_FILE, SETTINGS) or _OF_MODULE.fullmatch(name)]


def _tokenizer(names: Sequence[str]) -> list[str]:
    known = [name for name in _TOKENIZERS if name in names]
    return (known or [name for name in names if name.endswith(".tiktoken") and "/" not in name])[:1]


def _weights(names: Sequence[str]) -> list[str]:
    """The safetensors of a model that are read: all that an index may name, else the one file, else all there are.

    Some repositories have the same weights once more, as consolidated.safetensors of the authors' own format.
    """
    if INDEX not in names and SINGLE in names:
        return [SINGLE]
    found = [name for name in names if _is_weights(name)]
    return [*found, INDEX] if found and INDEX in names else found


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name


def _silent(phase: str, done: int, total: int, unit: str) -> None:
    """How far a small file is."""


def _matching(source: Hub, names: Iterable[str]) -> list[tuple[str, ...]]:
    """The GGUF models among `names` that the source may mean, each as its files."""
    wanted = source.file
    return [files for files in whole_models(names) if wanted is None or any(_names(wanted, name) for name in files)]


def _names(wanted: str, name: str) -> bool:
    if wanted.endswith(".gguf"):
        return wanted == name
    return wanted.lower() in name.lower().removesuffix(".gguf").replace(".", "-").split("-")


@frozen
class _Listed:
    """A file of a repository: bytes, and the hash that the hub has of large ones."""

    size: int
    sha256: str | None


def _listing(source: Hub, endpoint: str | None) -> dict[str, _Listed]:
    """Every file of the repository."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    info: Any = _calling(source, lambda: api.model_info(source.repo, revision=source.revision, files_metadata=True))
    return {file.rfilename: _Listed(file.size or 0, file.lfs and file.lfs.sha256) for file in info.siblings or []}


def _download(source: Hub, name: str, folder: Path, progress: type, endpoint: str | None) -> None:
    from huggingface_hub import hf_hub_download

    _calling(
        source,
        lambda: hf_hub_download(
            source.repo,
            name,
            revision=source.revision,
            local_dir=folder,
            endpoint=endpoint,
            tqdm_class=progress,
        ),
    )


def _calling(source: Hub, call: Callable[[], Any]) -> Any:
    """The one seam to huggingface_hub's errors."""
    from huggingface_hub import errors

    # The base of its HTTP client's errors comes from httpx or httpx2, as its version has it.
    transport: type[Exception] = vars(errors)["HTTPError"]

    try:
        return call()
    except (transport, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, transport) and not isinstance(error, errors.HfHubHTTPError):
            reason = f"the model hub cannot be reached: {reason}"
        raise WeightsError("repo_fetch_failed", f"{source.repo}: {reason}") from error


def _progress(report: Report, total: int) -> type:
    """A progress bar class for huggingface_hub that reports bytes over all files instead of drawing."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined] # theirs, public by their documentation

    bar: Any = tqdm
    done = [0]

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        bar.__init__(self, *args, **{**kwargs, "disable": True})
        done[0] += int(kwargs.get("initial", 0))

    def update(_: Any, n: float | None = 1) -> None:
        done[0] += int(n or 0)
        report("download", min(done[0], total), total, "bytes")

    return type("Reporting", (bar,), {"__init__": start, "update": update})
