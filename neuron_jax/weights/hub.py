"""Model repositories of the Hugging Face hub, kept in folders of our own cache; must not know jax or routes.

<cache>/hub/<org>/<name>@<revision>/   what is here is whole: files arrive by rename, config.json last
<cache>/.partial/hub/...               what is on its way, by what it is to become; a later fetch goes on from it
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
from attrs import frozen

from neuron_jax.weights.download import BUSY, RefusedError, Report, check_hash, download
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
_GGUF = re.compile(r"([^./][^/]*/)?[^./][^/]*\.gguf")
"""In a repository or a folder of it."""
_BESIDE_GGUF = re.compile(r"(.*/)?(mmproj|imatrix)[^/]*\.gguf", re.IGNORECASE)
"""What llama.cpp's users keep beside a model: what makes tokens of pictures, and what it was quantized by."""
_MAIN = "main"
_ATTEMPTS = 4
"""Of asking for the list of files, which huggingface_hub does once."""


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
    matching = _matching(source, _ggufs_in(folder))
    return folder / matching[0][0] if len(matching) == 1 else None


def local(cache: Path) -> Iterator[tuple[str, Path]]:
    """(id, path) of everything in the cache that came from the hub."""
    for folder in sorted((cache / "hub").glob("*/*@*")):
        name, _, revision = folder.name.rpartition("@")
        suffix = "" if revision == _MAIN else f"@{unquote(revision)}"
        id_ = f"{folder.parent.name}/{name}{suffix}"
        if (folder / "config.json").is_file():
            yield id_, folder
        ggufs = whole_models(_ggufs_in(folder))
        for first, *_ in ggufs:
            alone = len(ggufs) == 1 and not (folder / "config.json").is_file()
            yield (id_ if alone else f"{id_}:{first}"), folder / first


def _ggufs_in(folder: Path) -> Iterator[str]:
    """Names from `folder` on: some repositories have a folder for each quantization."""
    return (str(path.relative_to(folder)) for path in (*folder.glob("*.gguf"), *folder.glob("*/*.gguf")))


def fetch(source: Hub, cache: Path, report: Report, *, endpoint: str | None = None) -> Path:
    """Download what the source names; blocks, resumes. `endpoint` is another hub than the configured one.

    A second fetch of the same folder waits for the first. Raises WeightsError: repo_fetch_failed, empty_repo,
    bad_checkpoint, or quant_not_found with the names that are there.
    """
    begun, folder = folder_of(source, cache / ".partial"), folder_of(source, cache)
    begun.mkdir(parents=True, exist_ok=True)
    with alone(begun.with_name(f"{begun.name}.lock")):
        if (found := locate(source, cache)) is not None:
            return found
        files = _fetch_files(source, begun, report, endpoint)
        folder.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda name: name == "config.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            files[name].replace(folder / name)
    found = locate(source, cache)
    assert found is not None, f"{source} is not where it was put"
    return found


def _fetch_files(source: Hub, folder: Path, report: Report, endpoint: str | None) -> dict[str, Path]:
    """Where in `folder` each file of what the source means is, whole, by its name."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # theirs, public by their documentation

    listed = _listing(source, endpoint)
    names = choose(source, list(listed))
    found: dict[str, Path] = {}
    with httpx.Client(headers=build_hf_headers()) as client:
        files = _Files(client, source, folder, endpoint)
        if INDEX in names:  # first: it says which of the other files there are to fetch
            found[INDEX] = files.get(listed[INDEX], _silent)
            names = _of_index(source, found[INDEX], names)
        total, done = sum(listed[name].size for name in names), 0
        for name in names:
            found[name] = files.get(listed[name], _from(done, total, report))
            done += listed[name].size
    return found


def _from(before: int, total: int, report: Report) -> Report:
    """Tells how far all files are, of one of them."""
    return lambda phase, done, _, unit: report(phase, min(before + done, total), total, unit)


@frozen
class _Files:
    """Fetches files of a repository into `folder`, each under a name that says what it is to be: another revision's is none
    to go on from. huggingface_hub itself would begin anew what an earlier process has begun."""

    client: httpx.Client
    source: Hub
    folder: Path
    endpoint: str | None

    def get(self, listed: "_Listed", report: Report) -> Path:
        """The whole file, checked. Raises WeightsError."""
        from huggingface_hub import hf_hub_url

        path = self.folder / f"{listed.name}.{(listed.sha256 or f'{listed.size} bytes')[:16]}"
        if path.exists():
            report("download", listed.size, listed.size, "bytes")
            return path
        begun = path.with_name(f"{path.name}.part")
        repo, url = self.source.repo, partial(hf_hub_url, revision=self.source.revision, endpoint=self.endpoint)
        try:
            begun.parent.mkdir(exist_ok=True)
            download(self.client, url(repo, listed.name), begun, report)
            _check(begun, listed)
            return begun.rename(path)
        except RefusedError as error:
            said = _told(self.source, error.code, error.status)
            raise WeightsError("repo_fetch_failed", f"{repo}: {said}{error}") from error
        except OSError as error:
            raise WeightsError("repo_fetch_failed", f"{repo}: {listed.name}: {error.strerror or error}") from error


def _check(path: Path, listed: "_Listed") -> None:
    """Raises WeightsError, and deletes the file, when it is not the one that was listed."""
    if listed.sha256 is not None:
        check_hash(path, listed.sha256, listed.name)
    elif (found := path.stat().st_size) != listed.size:
        path.unlink()
        raise WeightsError(
            "repo_fetch_failed", f"{listed.name} has {found} bytes, must have {listed.size}; it was deleted"
        )


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
    ggufs = [name for name in names if _GGUF.fullmatch(name) and not _BESIDE_GGUF.fullmatch(name)]
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
    """Whether a file is meant by its name, with its folder or without, or by a part of it, as Q4_K_M and UD-Q4_K_XL are."""
    alone = name.rpartition("/")[2]
    if wanted.endswith(".gguf"):
        return wanted in (name, alone)
    return f"-{wanted}-".lower() in f"-{alone.removesuffix('.gguf')}-".replace(".", "-").lower()


@frozen
class _Listed:
    """A file of a repository: bytes, and the hash that the hub has of large ones."""

    name: str
    size: int
    sha256: str | None


def _listing(source: Hub, endpoint: str | None, pause: Callable[[float], None] = time.sleep) -> dict[str, _Listed]:
    """Every file of the repository. A hub that is busy or breaks off is asked again, after a moment."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    ask = partial(api.model_info, source.repo, revision=source.revision, files_metadata=True)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            info: Any = _calling(source, ask)
            break
        except _BusyError:
            if attempt == _ATTEMPTS:
                raise
            pause(0.5 * attempt)
    return {
        file.rfilename: _Listed(file.rfilename, file.size or 0, file.lfs and file.lfs.sha256)
        for file in info.siblings or []
    }


class _BusyError(WeightsError):
    """What may go well in a moment."""


def _calling(source: Hub, call: Callable[[], Any]) -> Any:
    """The one seam to huggingface_hub's errors. Raises WeightsError, _BusyError where the hub may do better in a moment."""
    from huggingface_hub import errors

    # The base of its HTTP client's errors comes from httpx or httpx2, as its version has it.
    transport: type[Exception] = vars(errors)["HTTPError"]

    try:
        return call()
    except (transport, errors.HFValidationError, errors.LocalEntryNotFoundError, OSError) as error:
        hidden = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
        reason, status = _first_line(hidden or error), getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, transport) and not isinstance(error, errors.HfHubHTTPError):
            broken = type(error).__name__ != "ConnectError"
            kind = _BusyError if broken and status in (None, *BUSY) else WeightsError
            raise kind("repo_fetch_failed", f"{source.repo}: the model hub cannot be reached: {reason}") from error
        kind = _BusyError if status in BUSY else WeightsError
        raise kind("repo_fetch_failed", f"{source.repo}: {_meaning(source, error, status)}{reason}") from error
    except ValueError as error:
        raise _BusyError("repo_fetch_failed", f"{source.repo}: the hub's answer is none: {error}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _told(source: Hub, code: str, status: int | None) -> str:
    """What a hub's own word for a refusal means, or the status alone."""
    meanings = {
        "GatedRepo": "it is gated, and HF_TOKEN is of nobody who accepted its terms on its page: ",
        "RepoNotFound": "there is no such repository, or HF_TOKEN is of nobody who may read it: ",
        "RevisionNotFound": f"it has no revision {source.revision!r}: ",
    }
    return meanings.get(code) or ("HF_TOKEN is of nobody who may read it: " if status in (401, 403) else "")


def _meaning(source: Hub, error: Exception, status: int | None) -> str:
    """What a refusal means to who asked, before its own words."""
    from huggingface_hub import errors

    kinds = {
        errors.GatedRepoError: "GatedRepo",
        errors.RepositoryNotFoundError: "RepoNotFound",
        errors.RevisionNotFoundError: "RevisionNotFound",
    }
    code = next((code for kind, code in kinds.items() if isinstance(error, kind)), "")
    return _told(source, code, status)
