"""What a model would take on cards that are not here; knows files, cards' figures and arithmetic, must not know a device.

The plan is made in this process, as an engine would make it on an empty card. Compiling happens in another one.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from msgspec import structs

from models.errors import ModelError
from models.spec import Model
from models.storage import MXFP4
from neuron_jax.config import NeuronConfig
from neuron_jax.daemon.catalogue import Catalogue
from neuron_jax.daemon.launch import engine_spec
from neuron_jax.deviceless.reads import parameters, token_bytes
from neuron_jax.deviceless.stored import promised
from neuron_jax.engine.build import Design, design_of, model_of
from neuron_jax.engine.memory import MIB, DoesNotFitError
from neuron_jax.errors import LoadError
from neuron_jax.hardware.cards import Card, cards
from neuron_jax.hardware.discover import has_cuda_plugin
from neuron_jax.planning import NotLocalError
from neuron_jax.weights import sources
from neuron_jax.weights.checkpoint import read_config
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.child import run_child
from neuron_jax.workers.frames import EngineSpec, MemoryRow
from neuron_jax.workers.process import CUDA_SHARE

NO_CUDA = "programs are compiled, and rates predicted, with JAX's CUDA wheels: pip install 'cortex-jax[cuda12]'. No GPU needed."
COUNTS = (1, 2, 4, 8)
"""Of cards that a model is tried on."""

CONTEXTS = (1024, 8192, 32768, 131072)
"""Tokens for which is told how many texts of that length fit."""


@frozen
class Planned:
    """A model and how it is to be loaded, on any card: its config, what an engine would be told, and the names of those tensors
    that are stored in MXFP4."""

    config: Mapping[str, Any]
    engine: EngineSpec
    coded: Sequence[str] = ()

    def on(self, card: Card, devices: int) -> EngineSpec:
        """The spec for so many of an empty card, of which an engine gets what the allocator can use."""
        memory = self.engine.memory_mb or int(card.memory * CUDA_SHARE) // MIB
        return structs.replace(
            self.engine, devices=tuple(range(devices)), tensor_parallel=devices, memory_mb=memory, compile_cache=""
        )


def wanted(config: NeuronConfig, asked: Mapping[str, Any]) -> Planned:
    """What a load request `asked` (fields of ModelSpec) means. Raises NotLocalError, ConfigError, LoadError."""
    catalogue = Catalogue(config)
    spec = catalogue.spec(asked, "the command line")
    path = sources.locate(catalogue.source(spec), config.cache.models_dir)
    if path is None:
        raise NotLocalError(
            f"{spec.model_id} is not on this host, and this fetches nothing. A folder with its config.json is enough."
        )
    try:
        found, stored = read_config(Path(path))
        stored = promised(found) if stored is None else stored
    except WeightsError as error:
        raise LoadError(error.kind, error.message, error.extras) from error
    except ModelError as error:
        raise LoadError("bad_checkpoint", f"{spec.model_id}: {error}") from error
    coded = [name for name, storage in stored.items() if storage == MXFP4]
    return Planned(found, engine_spec(config, spec, "cuda", (0,), path), coded)


def plan_abroad(asked: Planned, card: Card, count: int, devices: int) -> dict[str, Any]:
    """What `neuron plan --device` prints as JSON before anything is compiled, for engines of `devices` of `count` cards.

    Raises LoadError for a model that no family serves.
    """
    made = _planned(asked, _model(asked, devices), card, devices)
    fits = isinstance(made, Design)
    report: dict[str, Any] = {
        "model": asked.engine.model_id,
        "device": {"card": card.key, "name": card.name, "count": count, "memory_mb": card.memory // MIB},
        "tensor_parallel": devices,
        "replicas": count // devices,
        "parameters": parameters(asked.config),
        "fits": fits,
        "plan": [_told(row) for row in (made.plan.rows if isinstance(made, Design) else made.rows)],
        "suggestion": None if isinstance(made, Design) else made.suggestion,
    }
    if isinstance(made, Design):
        report |= {
            "quant": {"chosen": made.quant, "reason": made.quant_reason},
            "kv_dtype": {"chosen": made.kv.name, "reason": made.kv_reason},
            "max_context": made.plan.max_context,
            "context_length": made.model.max_positions,
            "streams": _streams(made),
            "at_most_tokens_per_second": card.bandwidth / token_bytes(made),
            "programs": list(map(str, made.buckets.keys())),
            "compiled": [],
            "predicted": None,
            "not_compiled": None if has_cuda_plugin() else NO_CUDA,
        }
    return report


def compile_abroad(
    asked: Planned, card: Card, devices: int, *, every: bool, inherited: Mapping[str, str]
) -> Iterator[Any]:
    """The records of `workers.compile_abroad`, as they come. Needs JAX's CUDA wheels."""
    from neuron_jax.deviceless.topology import ENVIRONMENT

    options = {"card": card.key, "config": dict(asked.config), "coded": list(asked.coded), "all": every}
    spec = asked.on(card, devices)
    return run_child(
        "neuron_jax.workers.compile_abroad", spec, options, inherited, {**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    )


def fitting(asked: Planned) -> list[dict[str, Any]]:
    """Of every card, the smallest first, the fewest that the model fits on, of at most eight; none of those that are too small.

    Where `tensor_parallel` is asked for, so many.
    """
    degree = asked.engine.tensor_parallel
    counts = (degree,) if degree > 1 else COUNTS
    # What a card has of memory changes the plan alone.
    models = {count: _model(asked, count) for count in counts}
    tried = (
        [(card, count, _planned(asked, models[count], card, count)) for count in counts] for card in cards().values()
    )
    fit = (next((found for found in each if isinstance(found[2], Design)), None) for each in tried)
    return [_row(made, card, count) for card, count, made in filter(None, fit) if isinstance(made, Design)]


def _told(row: MemoryRow) -> dict[str, Any]:
    return {"what": row.what, "bytes": row.bytes}


def _row(made: Design, card: Card, count: int) -> dict[str, Any]:
    return {
        "card": card.key,
        "name": card.name,
        "count": count,
        "memory_mb": count * card.memory // MIB,
        "max_context": made.plan.max_context,
        "streams": _streams(made),
        "at_most_tokens_per_second": card.bandwidth / token_bytes(made),
    }


def _model(asked: Planned, devices: int) -> Model:
    """Raises LoadError for a model that no family serves."""
    try:
        engine = structs.replace(asked.engine, tensor_parallel=devices)
        return model_of(asked.config, engine, dict.fromkeys(asked.coded, MXFP4))
    except ModelError as error:
        raise LoadError("bad_checkpoint", f"{asked.engine.model_id}: {error}") from error


def _planned(asked: Planned, model: Model, card: Card, devices: int) -> Design | DoesNotFitError:
    spec = asked.on(card, devices)
    try:
        return design_of(model, spec, limit=spec.memory_mb * MIB)
    except DoesNotFitError as error:
        return error


def _streams(made: Design) -> list[dict[str, int]]:
    """How many texts of some lengths have room at once."""
    tokens, most = made.plan.pages * made.shapes.page_size, made.shapes.max_slots
    lengths = sorted({*(length for length in CONTEXTS if length < made.plan.max_context), made.plan.max_context})
    return [{"context": length, "streams": min(most, tokens // length if tokens else most)} for length in lengths]
