"""Other weights for an engine that serves: held against its own, read beside them, put in their place; must not know sockets.

Compiled programs take parameters as arguments. So whatever has the same arrays can be swapped between two steps, where the
network is the same one: its sizes, its constants, and what the bytes of its matrices stand for.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from attrs import frozen
from msgspec.structs import replace

from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import EngineSpec, Event, Output, ReadWeights, WeightsRead
from neuron_jax.workers.heart import Heart
from neuron_jax.workers.start import StartedEngine, failure, give_back

log = logging.getLogger("neuron.engine")

MOST_NAMED = 20
"""Differences that an error names."""


@frozen(eq=False)
class Fitting:
    """A checkpoint that fits. `params` once they are read; None where they are to be read in place."""

    checkpoint: Any
    model: Any
    params: Any


class NewWeights:
    """The weights that are about to serve. The engine's thread calls it; reading is a thread's own."""

    def __init__(self, spec: EngineSpec, started: StartedEngine, tell: Callable[[Event], None], heart: Heart) -> None:
        self._spec = replace(spec, quant=started.made.quant)
        self._config = started.config
        self._made = started.made
        self._mesh = started.runner.program.mesh
        self._tell = tell
        self._heart = heart
        self._lock = threading.Lock()
        self._found: Fitting | None = None
        self._wanted: ReadWeights | None = None  # the newest, which alone may become `_found`

    def read(self, wanted: ReadWeights) -> None:
        """Begin to read; tells WeightsRead when they are ready, or what is wrong with them."""
        self.drop()
        self._wanted = wanted
        threading.Thread(target=self._read, args=(wanted,), name="weights", daemon=True).start()

    def swap(self, engine: Any) -> list[Output]:
        """Let `engine` serve with what was read; what the step under way still gave."""
        found, self._found = self._found, None
        assert found is not None, "no weights were read"
        outputs: list[Output] = engine.land()
        params = found.params
        if params is None:
            engine.runner.params = None  # the only reference: their memory is free for those that come
            params = self._in_place(found)
        engine.swap(params)
        self._config = found.checkpoint.config
        found.checkpoint.close()
        give_back()
        return outputs

    def drop(self) -> None:
        """Forget what was read; what is still being read is forgotten when it has been."""
        with self._lock:
            found, self._found, self._wanted = self._found, None, None
        if found is not None:
            found.checkpoint.close()

    def _read(self, wanted: ReadWeights) -> None:
        try:
            found = self._fitting(wanted)
        except Exception as error:
            log.exception("%s cannot take the place of what serves", wanted.path)
            failed = failure(error)
            self._tell(WeightsRead(failed.kind, failed.message))
            return
        with self._lock:
            kept = self._wanted is wanted
            self._found = found if kept else self._found
        if kept:
            self._tell(WeightsRead())
        else:
            found.checkpoint.close()

    def _fitting(self, wanted: ReadWeights) -> Fitting:
        """Raises WeightsError, ModelError or LoadError."""
        from neuron_jax.weights.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(Path(wanted.path))
        try:
            model = self._model_of(checkpoint)
            if wanted.in_place:
                return Fitting(checkpoint, model, None)
            self._check_room()
            return Fitting(checkpoint, model, self._load(model, checkpoint))
        except BaseException:
            checkpoint.close()
            raise

    def _model_of(self, checkpoint: Any) -> Any:
        """The checkpoint's own model, which is the engine's but for the way its parameters come about."""
        from models.registry import read
        from neuron_jax.engine.build import bound
        from neuron_jax.weights.converted import ConvertedCheckpoint
        from neuron_jax.weights.errors import bad_checkpoint
        from neuron_jax.weights.place import checked

        differing = differences(_plain(read(self._config)), _plain(read(checkpoint.config)))
        if differing:
            raise bad_checkpoint(checkpoint.path, [f"is another model than the one that serves: {_told(differing)}"])
        model = bound(checkpoint.config, self._spec, self._spec.quant, checkpoint.storage)
        if isinstance(checkpoint, ConvertedCheckpoint):
            from neuron_jax.weights.orbax_params import check_leaves

            check_leaves(model, checkpoint)
        else:
            checked(model, checkpoint)
        stored = differences(_kept(self._made.model), _kept(model))
        if stored:
            why = f"its tensors are stored otherwise than those that serve, and quant is {self._spec.quant!r}"
            raise bad_checkpoint(checkpoint.path, [f"{why}: {_told(stored)}"])
        return model

    def _in_place(self, found: Fitting) -> Any:
        """The parameters, where the old ones are gone already. What goes wrong now ends the process, which begins anew."""
        try:
            with self._heart.work("reading weights"):
                return self._load(found.model, found.checkpoint)
        except Exception as error:
            raise LoadError("internal", f"{found.checkpoint.path} could not be read in place: {error}") from error

    def _check_room(self) -> None:
        """Raises LoadError where a device has not the memory for both. A host's memory is the daemon's to give."""
        for device in self._mesh.local_devices:
            stats = device.memory_stats() or {}
            if "bytes_limit" not in stats:
                continue
            needed = next(row.bytes for row in self._made.plan.rows if row.what == "weights")
            free = int(stats["bytes_limit"] - stats["bytes_in_use"])
            if needed > free:
                raise LoadError(
                    "does_not_fit",
                    f"new weights take {needed >> 20} MiB of {device} beside those that serve, and {max(free, 0) >> 20} "
                    "MiB are free of what this engine may use. in_place = true reads them in their place",
                )

    def _load(self, model: Any, checkpoint: Any) -> Any:
        from neuron_jax.weights.place import load_params

        return load_params(model, checkpoint, self._mesh, lambda *_: None)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Sequence[str]:
    """What is not alike in two records, by the path to it."""
    return [
        f"{key} is {theirs.get(key)}, not {ours.get(key)}"
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    ]


def _told(differing: Sequence[str]) -> str:
    more = len(differing) - MOST_NAMED
    return "; ".join(differing[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _plain(outline: Any) -> Mapping[str, Any]:
    """Everything a network is made of, by path. Numbers are those of float32: a GGUF header has no others."""
    return dict(_leaves("", attrs.asdict(outline)))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case Mapping():
            for key, part in value.items():
                yield from _leaves(f"{path}.{key}" if path else str(key), part)
        case list() | tuple():
            yield f"{path}.length", len(value)
            for place, part in enumerate(value):
                yield from _leaves(f"{path}.{place}", part)
        case float():
            yield path, float(np.float32(value))
        case _:
            yield path, value


def _kept(model: Any) -> Mapping[str, Any]:
    """How each parameter is kept, by path."""
    arrays = dict(_specs("", model.param_specs))
    return {**arrays, **{path: f"{tiles.storage}" for path, tiles in model.tiles.items()}}


def _specs(path: str, tree: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(tree, Mapping):
        yield path, f"{np.dtype(tree.dtype)} {list(tree.shape)}"
        return
    for key, part in tree.items():
        yield from _specs(f"{path}.{key}" if path else str(key), part)
