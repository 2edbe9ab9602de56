"""What loading a model here would take, found out without loading it; knows files and arithmetic, opens no port.

A plan is made in this process. Compiling ahead happens in another one, with the settings and devices of an engine.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import frozen

from models.errors import ModelError
from models.storage import MXFP4
from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.assign import assign
from neuron_jax.daemon.catalogue import Catalogue
from neuron_jax.daemon.launch import engine_spec
from neuron_jax.engine.attention.kv import choose_kv
from neuron_jax.engine.build import Design, choose_quant, design, refuses_native
from neuron_jax.engine.memory import DoesNotFitError
from neuron_jax.errors import LoadError, NeuronError
from neuron_jax.hardware.records import DeviceLoad, Hardware
from neuron_jax.weights import sources
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.describe import ModelDescription, describe
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.child import run_child
from neuron_jax.workers.frames import EngineSpec, MemoryRow
from neuron_jax.workers.process import CUDA_SHARE
from neuron_jax.workers.start import as_converted


class NotLocalError(NeuronError):
    """The model's files are not on this host; the message says what fetches them."""


@frozen
class PlannedProgram:
    """One program that would be compiled. Without those that are `essential` the engine is not ready."""

    name: str
    essential: bool


@frozen
class Resolved:
    """A load request, as what an engine process would be told."""

    spec: ModelSpec
    described: ModelDescription
    engine: EngineSpec


@frozen
class PlanReport:
    """The memory plan of one model on this host: bytes per device. `suggestion` where it does not fit."""

    model: str
    path: Path
    parameters: int
    context_length: int
    platform: Literal["cpu", "cuda"]
    devices: tuple[int, ...]
    quant: str
    quant_reason: str
    kv_dtype: str
    kv_reason: str
    fits: bool
    max_context: int
    plan: tuple[MemoryRow, ...]
    programs: tuple[PlannedProgram, ...]  # in the order of compiling; none where it does not fit
    suggestion: str | None

    def as_json(self) -> dict[str, Any]:
        """What `neuron plan --json` prints; `quant`, `kv_dtype` and `plan` as GET /models has them."""
        return {
            **attrs.asdict(self, filter=attrs.filters.exclude("quant_reason", "kv_reason")),
            "path": str(self.path),
            "programs": [attrs.asdict(program) for program in self.programs],
            "quant": {"chosen": self.quant, "reason": self.quant_reason},
            "kv_dtype": {"chosen": self.kv_dtype, "reason": self.kv_reason},
            "plan": [{"what": row.what, "bytes": row.bytes} for row in self.plan],
        }


def resolve(
    config: NeuronConfig, hardware: Hardware, loads: Sequence[DeviceLoad], asked: Mapping[str, Any]
) -> Resolved:
    """What a load request `asked` (fields of ModelSpec) means on these devices.

    Raises NotLocalError, ConfigError for a wrong request, LoadError for devices that are not here or broken files.
    """
    catalogue = Catalogue(config)
    spec = catalogue.spec(asked, "the command line")
    path = sources.locate(catalogue.source(spec), config.cache.models_dir)
    if path is None:
        raise NotLocalError(
            f"{spec.model_id} is not on this host, and this fetches nothing. This does: cortex load {spec.model_id}"
        )
    try:
        described = describe(path)
    except WeightsError as error:
        raise LoadError(error.kind, error.message, error.extras) from error
    devices = assign(spec, hardware, loads, {})
    return Resolved(spec, described, engine_spec(config, spec, hardware.devices[0].kind, devices, path))


def plan_model(found: Resolved, loads: Sequence[DeviceLoad]) -> PlanReport:
    """The plan on devices as full as `loads` says. Raises LoadError for a model that no family serves."""
    limit = _limit(found.engine, {load.index: load.vram_free_mb for load in loads})
    made, coded = _design(found, limit)
    return _report(found, made, choose_quant(found.engine, refuses_native(found.engine), coded=coded))


def compile_ahead(found: Resolved, inherited: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Compile every program into the persistent cache, in another process; its records, as they come."""
    return run_child("neuron_jax.workers.compile_ahead", found.engine, {}, inherited)


def _limit(spec: EngineSpec, free_mb: Mapping[int, int]) -> int:
    """Bytes the engine could use on each of its devices, the fullest of them deciding. CPUs share one memory."""
    if spec.memory_mb:
        return spec.memory_mb * 2**20
    free = min(free_mb[index] for index in spec.devices) * 2**20
    return int(free * CUDA_SHARE) if spec.platform == "cuda" else free // spec.tensor_parallel


def _design(found: Resolved, limit: int) -> tuple[Design | DoesNotFitError, bool]:
    """And whether the checkpoint has matrices whose codes a GPU may keep."""
    try:
        with open_checkpoint(Path(found.engine.path)) as checkpoint:
            spec, coded = as_converted(found.engine, checkpoint), MXFP4 in checkpoint.storage.values()
            try:
                return design(checkpoint.config, spec, limit=limit, storage=checkpoint.storage), coded
            except DoesNotFitError as error:
                return error, coded
    except ModelError as error:
        raise LoadError("bad_checkpoint", f"{found.spec.model_id}: {error}") from error


def _report(found: Resolved, made: Design | DoesNotFitError, chosen: tuple[str, str]) -> PlanReport:
    quant, reason = chosen
    kv, kv_reason = choose_kv(found.engine.kv_dtype, found.engine.platform)
    fits = isinstance(made, Design)
    return PlanReport(
        model=found.spec.model_id,
        path=Path(found.engine.path),
        parameters=found.described.parameters,
        context_length=found.described.context_length,
        platform=found.engine.platform,
        devices=found.engine.devices,
        quant=quant,
        quant_reason=reason,
        kv_dtype=kv.name,
        kv_reason=kv_reason,
        fits=fits,
        max_context=made.plan.max_context if isinstance(made, Design) else 0,
        plan=made.plan.rows if isinstance(made, Design) else made.rows,
        programs=_programs(made) if isinstance(made, Design) else (),
        suggestion=made.suggestion if isinstance(made, DoesNotFitError) else None,
    )


def _programs(made: Design) -> tuple[PlannedProgram, ...]:
    keys, essential = made.buckets.keys(), made.buckets.essential()
    return tuple(PlannedProgram(str(key), key in essential) for key in keys)
