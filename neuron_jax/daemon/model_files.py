"""What the files of models on this host say, loaded or not; reads in threads, must not know engines."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from attrs import frozen

from neuron_jax.config import NeuronConfig
from neuron_jax.daemon.catalogue import Catalogue, Entry
from neuron_jax.daemon.estimate import least_bytes
from neuron_jax.daemon.model_text import Broken, ModelFacts, ModelText, read_facts, read_text
from neuron_jax.daemon.problems import Problem, model_not_found
from neuron_jax.weights.describe import ModelDescription
from neuron_jax.weights.errors import WeightsError

TEXTS_KEPT = 8
"""Tokenizers of models that are not loaded, kept for POST /tokenize."""

FactsKey = tuple[Path, int]
"""Files, and when anything of them changed last."""


@frozen
class Offered:
    """A model that this host could load, and what its files say, by the `key` they are remembered by: None without files."""

    entry: Entry
    facts: ModelFacts | Broken | None = None
    key: FactsKey | None = None


class ModelFiles:
    """The one owner of what was read before, so that it is read once. `platform`: what engines run on here."""

    def __init__(self, config: NeuronConfig, catalogue: Catalogue, platform: Literal["cpu", "cuda"]) -> None:
        self._config = config
        self._catalogue = catalogue
        self._platform = platform
        self._facts: Mapping[FactsKey, ModelFacts | Broken] = {}
        self._texts: OrderedDict[Path, ModelText] = OrderedDict()

    async def offered(self) -> Sequence[Offered]:
        """Everything this host could load. A file that has changed is read again."""
        found = await asyncio.to_thread(_look, self._catalogue, self._facts)
        self._facts = {one.key: one.facts for one in found if one.key is not None and one.facts is not None}
        return found

    async def text(self, name: str) -> tuple[ModelText, int]:
        """A model's text side and the context it would have. Raises Problem where its files are not here, or unusable."""
        path = await asyncio.to_thread(self._catalogue.locate, name)
        if path is None:
            raise model_not_found(name, (entry.id for entry in self._catalogue.entries()))
        text = self._texts.get(path) or await _read_text(path)
        self._texts[path] = text
        self._texts.move_to_end(path)
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return text, self.context_limit(name, text.description)

    def context_limit(self, name: str, description: ModelDescription) -> int:
        """The context a model would have here, before it is loaded."""
        limits = (description.context_length, self._catalogue.max_context(name), self._config.engine.max_context)
        return min(limit for limit in limits if limit)

    def adapters(self, name: str) -> Sequence[str]:
        """Those that a model would be loaded with, NAME=FOLDER."""
        return self._catalogue.adapters(name)

    def least_bytes(self, name: str, description: ModelDescription) -> int:
        """What a model takes at least here, over all its devices, before it is loaded."""
        return least_bytes(
            description,
            platform=self._platform,
            quant=self._catalogue.quant(name),
            kv_dtype=self._catalogue.kv_dtype(name),
            max_context=self._catalogue.max_context(name) or self._config.engine.max_context,
        )


def _look(catalogue: Catalogue, known: Mapping[FactsKey, ModelFacts | Broken]) -> Sequence[Offered]:
    return [_offered(entry, known) for entry in catalogue.entries()]


def _offered(entry: Entry, known: Mapping[FactsKey, ModelFacts | Broken]) -> Offered:
    if entry.absent is not None:
        return Offered(entry, Broken(entry.absent))
    if entry.path is None:
        return Offered(entry)
    key = (entry.path, _changed_at(entry.path))
    return Offered(entry, known.get(key) or read_facts(entry.path), key)


async def _read_text(path: Path) -> ModelText:
    try:
        return await asyncio.to_thread(read_text, path)
    except WeightsError as error:
        raise Problem(422, "bad_checkpoint", str(error), param="model") from error


def _changed_at(path: Path) -> int:
    """When anything at `path` changed last, in ns: a folder itself does not change with what is written into its files."""
    try:
        return max(int(one.stat().st_mtime_ns) for one in (path, *(path.iterdir() if path.is_dir() else ())))
    except OSError:
        return 0
