"""Every model this host could load and every name of each; knows files and config, must not know engines."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from models.spec import Purpose
from neuron_jax.common.reader import read_record
from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.errors import LoadError
from neuron_jax.weights import sources
from neuron_jax.weights.errors import WeightsError


@frozen
class Entry:
    """One loadable model. `path` is where its files are, None when they would have to be fetched, or when `absent` says
    why the path that is configured for it holds none. `purpose`: what it is for, as far as its name says it."""

    id: str
    aliases: tuple[str, ...]
    path: Path | None
    absent: str | None = None
    purpose: Purpose = "generate"


class Catalogue:
    """The configured models, the built-in ones, and what is in the cache; reads the disk at every question."""

    def __init__(self, config: NeuronConfig) -> None:
        self._cache = config.cache.models_dir
        self._configured = {spec.model_id: spec for spec in (*config.default_models, *config.models)}
        self._names = {alias: spec.model_id for spec in self._configured.values() for alias in spec.aliases}

    def canonical(self, name: str) -> str:
        """The id behind an alias; any other name is its own id."""
        if name in self._configured:
            return name
        if name in self._names:
            return self._names[name]
        return next((id_ for id_, model in sources.BUILT_IN.items() if name in (id_, *model.aliases)), name)

    def aliases(self, model_id: str) -> tuple[str, ...]:
        """The other names of a model."""
        configured = [alias for alias, id_ in self._names.items() if id_ == model_id]
        built_in = sources.BUILT_IN.get(model_id)
        known = [alias for alias in (built_in.aliases if built_in else ()) if self.canonical(alias) == model_id]
        return tuple(dict.fromkeys((*configured, *known)))

    def spec(self, given: Mapping[str, Any], origin: str) -> ModelSpec:
        """A load request over what is configured for that model. Raises ConfigError."""
        spec = read_record(ModelSpec, given, origin)
        model_id = self.canonical(spec.model_id)
        base = self._configured.get(model_id)
        if base is None:
            return attrs.evolve(spec, model_id=model_id)
        changes = {key: getattr(spec, key) for key in given if key != "model_id"}
        return attrs.evolve(base, **changes)

    def source(self, spec: ModelSpec) -> sources.Source:
        """Where the weights are. Raises LoadError when the name says nothing."""
        try:
            return sources.parse_source(spec.source or spec.model_id)
        except WeightsError as error:
            raise LoadError(error.kind, error.message, error.extras) from error

    def fetch(self, source: sources.Source, report: sources.Report) -> Path:
        """Blocks until the files are here. Raises WeightsError."""
        return sources.locate(source, self._cache) or sources.fetch(source, self._cache, report)

    def locate(self, name: str) -> Path | None:
        """Local files of a model, or None; never the network, and no path that only the asker knows."""
        model_id = self.canonical(name)
        spec = self._configured.get(model_id)
        try:
            source = sources.parse_source(spec.source or spec.model_id if spec else model_id)
        except WeightsError:
            return None
        if spec is None and isinstance(source, sources.Folder | sources.GgufSource):
            return None
        return sources.locate(source, self._cache)

    def max_context(self, name: str) -> int:
        """The context configured for a model; 0 = none is."""
        spec = self._configured.get(self.canonical(name))
        return (spec.max_context or 0) if spec else 0

    def quant(self, name: str) -> str:
        """How a model's weights will be kept unless a load says otherwise."""
        spec = self._configured.get(self.canonical(name))
        return spec.quant if spec else "auto"

    def adapters(self, name: str) -> tuple[str, ...]:
        """Those that a model is loaded with unless a load says otherwise, NAME=FOLDER."""
        spec = self._configured.get(self.canonical(name))
        return spec.adapters if spec else ()

    def kv_dtype(self, name: str) -> str:
        """How a model's keys and values will be kept unless a load says otherwise."""
        spec = self._configured.get(self.canonical(name))
        return spec.kv_dtype if spec else "auto"

    def entries(self) -> Iterator[Entry]:
        """Every model this host offers, each once."""
        local = {model.id: model.path for model in sources.local_models(self._cache)}
        for model_id in dict.fromkeys((*self._configured, *sources.BUILT_IN, *local)):
            path = local.get(model_id) or self.locate(model_id)
            absent = self._absent(model_id) if path is None else None
            built_in = sources.BUILT_IN.get(model_id)
            yield Entry(model_id, self.aliases(model_id), path, absent, built_in.purpose if built_in else "generate")

    def _absent(self, model_id: str) -> str | None:
        spec = self._configured.get(model_id)
        try:
            return sources.absent(sources.parse_source(spec.source or spec.model_id)) if spec else None
        except WeightsError as error:
            return error.message
