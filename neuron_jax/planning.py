"""What loading a model here would take, found out without loading it; knows files and arithmetic, opens no port."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import frozen

from models.errors import ModelError
from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.catalogue import Catalogue
from neuron_jax.daemon.devices import assign
from neuron_jax.daemon.launch import engine_spec
from neuron_jax.engine.build import Design, choose_quant, design
from neuron_jax.engine.memory import DoesNotFitError
from neuron_jax.errors import LoadError, NeuronError
from neuron_jax.hardware.records import DeviceLoad, Hardware
from neuron_jax.weights import sources
from neuron_jax.weights.describe import ModelDescription, describe
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.engine_client import CUDA_SHARE
from neuron_jax.workers.frames import EngineSpec, MemoryRow


class NotLocalError(NeuronError):
    """The model's files are not on this host; the message says what fetches them."""


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
    fits: bool
    max_context: int
    plan: tuple[MemoryRow, ...]
    suggestion: str | None

    def as_json(self) -> dict[str, Any]:
        """What `neuron plan --json` prints; `quant` and `plan` as GET /models has them."""
        return {
            **attrs.asdict(self, filter=attrs.filters.exclude("quant_reason")),
            "path": str(self.path),
            "quant": {"chosen": self.quant, "reason": self.quant_reason},
            "plan": [{"what": row.what, "bytes": row.bytes} for row in self.plan],
        }


def plan_model(
    config: NeuronConfig, hardware: Hardware, loads: Sequence[DeviceLoad], asked: Mapping[str, Any]
) -> PlanReport:
    """The plan for a load request `asked` (fields of ModelSpec) on devices as full as `loads` says.

    Raises NotLocalError, ConfigError for a wrong request, LoadError for devices that are not here, broken files, or a
    model that no family serves.
    """
    catalogue = Catalogue(config)
    spec = catalogue.spec(asked, "the command line")
    path = sources.locate(catalogue.source(spec), config.cache.models_dir)
    if path is None:
        raise NotLocalError(
            f"{spec.model_id} is not on this host, and a plan fetches nothing. This does: cortex load {spec.model_id}"
        )
    try:
        described = describe(path)
    except WeightsError as error:
        raise LoadError(error.kind, error.message, error.extras) from error
    devices = assign(spec, hardware, loads, {})
    engine = engine_spec(config, spec, hardware.devices[0].kind, devices, path)
    limit = _limit(engine, {load.index: load.vram_free_mb for load in loads})
    return _report(spec, path, described, engine, _design(spec, described, engine, limit))


def _limit(spec: EngineSpec, free_mb: Mapping[int, int]) -> int:
    """Bytes the engine could use on each of its devices, the fullest of them deciding. CPUs share one memory."""
    if spec.memory_mb:
        return spec.memory_mb * 2**20
    free = min(free_mb[index] for index in spec.devices) * 2**20
    return int(free * CUDA_SHARE) if spec.platform == "cuda" else free // spec.tensor_parallel


def _design(spec: ModelSpec, described: ModelDescription, engine: EngineSpec, limit: int) -> Design | DoesNotFitError:
    try:
        return design(described.config, engine, limit=limit)
    except DoesNotFitError as error:
        return error
    except ModelError as error:
        raise LoadError("bad_checkpoint", f"{spec.model_id}: {error}") from error


def _report(
    spec: ModelSpec, path: Path, described: ModelDescription, engine: EngineSpec, made: Design | DoesNotFitError
) -> PlanReport:
    quant, reason = choose_quant(engine)
    fits = isinstance(made, Design)
    return PlanReport(
        model=spec.model_id,
        path=path,
        parameters=described.parameters,
        context_length=described.context_length,
        platform=engine.platform,
        devices=engine.devices,
        quant=quant,
        quant_reason=reason,
        fits=fits,
        max_context=made.plan.max_context if isinstance(made, Design) else 0,
        plan=made.plan.rows if isinstance(made, Design) else made.rows,
        suggestion=made.suggestion if isinstance(made, DoesNotFitError) else None,
    )
