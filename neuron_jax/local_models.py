"""The models on this host's disk: fetched, listed, removed; knows sources and the catalogue, opens no port.

A fetch runs in a thread, so that who waits for it can draw its progress and leave.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from neuron_jax.config import NeuronConfig
from neuron_jax.daemon.catalogue import Catalogue
from neuron_jax.errors import LoadError, NeuronError
from neuron_jax.weights import removing, sources
from neuron_jax.weights.errors import WeightsError

Record = Mapping[str, Any]


class NotInCacheError(NeuronError):
    """There is nothing to remove; the message says what there is."""


class _LeftError(Exception):
    """Raised inside a fetching thread when nobody waits any more."""


@frozen
class OfferedModel:
    """One model that this host offers. `path` and `bytes` where its files are here; `broken`: why a configured path is none."""

    id: str
    aliases: tuple[str, ...]
    path: Path | None
    bytes: int
    broken: str | None

    def as_json(self) -> Record:
        """As `neuron models --json` prints it."""
        path = None if self.path is None else str(self.path)
        return {"id": self.id, "aliases": self.aliases, "path": path, "bytes": self.bytes, "broken": self.broken}


def pull(config: NeuronConfig, name: str, revision: str | None = None) -> Generator[Record]:
    """Get a model's files; {"phase", "done", "total", "unit"} as they come, then {"id", "path", "bytes"}.

    Raises LoadError. When the iterator is closed the fetch ends at its next report, and a later one goes on from there.
    """
    catalogue = Catalogue(config)
    model_id, source = _source(catalogue, name, revision)
    told: queue.SimpleQueue[Record | Exception] = queue.SimpleQueue()
    left = threading.Event()

    def report(phase: str, done: int, total: int, unit: str) -> None:
        if left.is_set():
            raise _LeftError
        told.put({"phase": phase, "done": done, "total": total, "unit": unit})

    def work() -> None:
        try:
            path = catalogue.fetch(source, report)
            told.put({"id": model_id, "path": str(path), "bytes": removing.size_of(path)})
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            told.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        yield from _until_path(told)
    finally:
        left.set()


def listed(config: NeuronConfig) -> Sequence[OfferedModel]:
    """Everything this host offers: configured, built-in, and in the cache."""
    entries = Catalogue(config).entries()
    return [
        OfferedModel(one.id, one.aliases, one.path, 0 if one.path is None else removing.size_of(one.path), one.absent)
        for one in entries
    ]


def remove(config: NeuronConfig, name: str) -> int:
    """Delete a model from the cache; bytes freed. Raises NotInCacheError, and LoadError for a name that says nothing."""
    catalogue = Catalogue(config)
    _, source = _source(catalogue, name, None)
    if isinstance(source, sources.Folder | sources.GgufSource):
        raise NotInCacheError(f"{source.path} is a path of your own, which is left alone: only the cache is cleaned")
    freed = removing.remove(source, config.cache.models_dir)
    if not freed:
        known = ", ".join(model.id for model in sources.local_models(config.cache.models_dir)) or "nothing"
        raise NotInCacheError(f"{name} is not in {config.cache.models_dir}; there is: {known}")
    return freed


def _source(catalogue: Catalogue, name: str, revision: str | None) -> tuple[str, sources.Source]:
    """The id and the source that a name on the command line means. Raises LoadError."""
    spec = catalogue.spec({"model_id": name}, "the command line")
    source = catalogue.source(spec)
    if revision is None:
        return spec.model_id, source
    if not isinstance(source, sources.Hub) or source.revision is not None:
        raise LoadError("repo_fetch_failed", f"{name} takes no revision: only org/name on the hub has any")
    repo, _, file = name.removeprefix("hf:").partition(":")
    return _source(catalogue, f"{repo}@{revision}{':' * bool(file)}{file}", None)


def _until_path(told: "queue.SimpleQueue[Record | Exception]") -> Iterator[Record]:
    while True:
        record = told.get()
        if isinstance(record, WeightsError):
            raise LoadError(record.kind, record.message, record.extras) from record
        if isinstance(record, OSError):
            raise LoadError("repo_fetch_failed", f"{type(record).__name__}: {record}") from record
        if isinstance(record, Exception):
            raise record
        yield record
        if "path" in record:
            return
