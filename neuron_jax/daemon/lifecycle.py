"""The one owner of loaded models: load, unload, what is loaded, what could be; must not know HTTP.

Everything here runs in the event loop's thread; `_residents` is written by `_begin` and `_forget` only.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import attrs
from attrs import define, field

from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.catalogue import Catalogue
from neuron_jax.daemon.devices import Devices, assign, assign_all
from neuron_jax.daemon.estimate import least_bytes
from neuron_jax.daemon.groups import Groups
from neuron_jax.daemon.launch import engine_spec
from neuron_jax.daemon.lending import Lender
from neuron_jax.daemon.metrics import DeviceGauges, Metrics, ModelGauges
from neuron_jax.daemon.model_text import Broken, ModelFacts, ModelText, read_facts, read_text
from neuron_jax.daemon.problems import Problem, model_not_found, shutting_down
from neuron_jax.daemon.replica import Listener, ReplicaSpec
from neuron_jax.daemon.resident import Plan, ResidentModel
from neuron_jax.daemon.shares import shortage
from neuron_jax.daemon.status import Stage
from neuron_jax.errors import LoadError
from neuron_jax.text.errors import TextError
from neuron_jax.weights.describe import ModelDescription
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.process import DEFAULT_COMMAND
from neuron_jax.workers.renderers import Renderers
from neuron_jax.workers.supervisor import RESTARTS, RestartPolicy

TEXTS_KEPT = 8
"""Tokenizers of models that are not loaded, kept for POST /tokenize."""
RENDER_MB, COPIES = 256, 8
"""MiB for rendering one chat: for any template, and for so many copies of the longest request."""
WATCH_SECONDS = 1.0
"""Between two looks at the devices."""

_log = logging.getLogger("neuron.lifecycle")


class AlreadyLoadedError(Exception):
    """The model serves already; callers treat it as success."""


@define
class Activation:
    """How far the default models are."""

    pending: list[str] = field(factory=list)
    in_progress: str | None = None
    completed: list[str] = field(factory=list)
    failed: list[tuple[str, str]] = field(factory=list)

    @property
    def state(self) -> str:
        """`pre_warming` until every default model was tried."""
        return "pre_warming" if self.pending or self.in_progress else "ready"


class Lifecycle:
    """Make it inside the loop, `start` it, `close` it."""

    def __init__(
        self,
        config: NeuronConfig,
        devices: Devices,
        metrics: Metrics,
        *,
        command: Sequence[str] = DEFAULT_COMMAND,
        restarts: RestartPolicy = RESTARTS,
    ) -> None:
        self.config = config
        self.devices = devices
        self.catalogue = Catalogue(config)
        self.activation = Activation(pending=[spec.model_id for spec in config.default_models])
        self.closing = False
        self.lender = Lender(
            config,
            devices,
            command=command,
            read_model=self.catalogue.spec,
            locate=self._locate,
            choose=self._lend,
        )
        self.renderers = Renderers(RENDER_MB + COPIES * config.server.max_body_mb, config.environ)
        self._groups = Groups(config, devices, command)
        self._metrics = metrics
        self._restarts = restarts
        self._residents: dict[str, ResidentModel] = {}
        self._facts: dict[tuple[Path, int], ModelFacts | Broken] = {}
        self._texts: OrderedDict[Path, ModelText] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []
        devices.keep_free(config.engine.min_free_mb)

    def start(self) -> None:
        """Begins to load the default models, and to look at the devices."""
        self._tasks = [
            asyncio.create_task(self._activate(), name="default models"),
            asyncio.create_task(self._watch(), name="devices"),
        ]

    async def close(self, drain_secs: float = 0.0) -> None:
        """Ends every engine. Nothing can be loaded any more."""
        self.closing = True
        self.devices.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.lender.close()
        unloads = [resident.unload(drain_secs) for resident in tuple(self._residents.values())]
        await asyncio.gather(*unloads, return_exceptions=True)
        await self.renderers.close()

    async def refuse_new_work(self) -> None:
        """The neuron is about to end: models that still load are given up, requests in flight go on."""
        self.closing = True
        self.devices.close()
        await self.lender.close()
        loading = [resident for resident in self._residents.values() if resident.status.stage is Stage.LOADING]
        await asyncio.gather(*(resident.unload(0.0) for resident in loading), return_exceptions=True)

    @property
    def residents(self) -> Sequence[ResidentModel]:
        """Everything that is loaded, loads, or failed to."""
        return tuple(self._residents.values())

    def resident(self, name: str) -> ResidentModel | None:
        """The model called `name`, whatever its state."""
        return self._residents.get(self.catalogue.canonical(name))

    def serving(self, name: str) -> ResidentModel:
        """The model called `name`. Raises Problem unless it takes requests now."""
        if self.closing:
            raise shutting_down()
        resident = self.resident(name)
        if resident is None:
            raise model_not_found(name, self._residents)
        resident.check()
        return resident

    async def load(self, spec: ModelSpec, listener: Listener = lambda _: None) -> None:
        """Returns when the model serves; callers of the same model share one load, which goes on without them.

        Raises AlreadyLoadedError, LoadError, or Problem when the neuron ends or the model is unloaded meanwhile.
        """
        if self.closing:
            raise shutting_down()
        while (resident := self._residents.get(spec.model_id)) and resident.status.stage in (
            Stage.FAILED,
            Stage.DRAINING,
        ):
            await resident.unload(0.0)
        if resident is None:
            resident = await self._begin(spec)
        elif resident.serving:
            raise AlreadyLoadedError(f"{spec.model_id} is already loaded")
        with resident.heard_by(listener):
            await resident.loaded()

    async def unload(self, name: str, drain_secs: float) -> bool:
        """False when the model is not loaded. Returns when its process is gone."""
        resident = self.resident(name)
        if resident is None:
            return False
        await resident.unload(drain_secs)
        return True

    async def text(self, name: str) -> tuple[ModelText, int]:
        """A model's text side and context limit, from its files if it is not loaded. Raises Problem 404."""
        resident = self.resident(name)
        if resident is not None and resident.serving:
            return resident.text, resident.max_context
        path = await asyncio.to_thread(self.catalogue.locate, name)
        if path is None:
            known = (entry.id for entry in self.catalogue.entries())
            raise model_not_found(name, known)
        text = self._texts.get(path) or await self._read_text(path)
        self._texts[path] = text
        self._texts.move_to_end(path)
        while len(self._texts) > TEXTS_KEPT:
            self._texts.popitem(last=False)
        return text, self.context_limit(name, text.description)

    def facts(self, path: Path) -> ModelFacts | Broken:
        """What the files at `path` say; blocks on the first question about a file."""
        key = (path, _changed_at(path))
        if key not in self._facts:
            self._facts[key] = read_facts(path)
        return self._facts[key]

    def context_limit(self, name: str, description: ModelDescription) -> int:
        """The context a model would have here, before it is loaded."""
        limits = (description.context_length, self.catalogue.max_context(name), self.config.engine.max_context)
        return min(limit for limit in limits if limit)

    def least_bytes(self, name: str, description: ModelDescription) -> int:
        """What a model takes at least here, over all its devices, before it is loaded."""
        return least_bytes(
            description,
            platform=self.devices.platform,
            quant=self.catalogue.quant(name),
            kv_dtype=self.catalogue.kv_dtype(name),
            max_context=self.catalogue.max_context(name) or self.config.engine.max_context,
        )

    def model_gauges(self) -> Iterable[ModelGauges]:
        """The numbers of the moment, for a scrape."""
        for resident in self.residents:
            queue = resident.admission if resident.serving else None
            yield ModelGauges(
                model=resident.id,
                up=resident.status.stage is Stage.LOADED,
                load=resident.load,
                in_flight=queue.in_flight if queue else 0,
                queued=queue.queued if queue else 0,
                restarts=resident.status.restarts,
            )

    def device_gauges(self) -> Iterable[DeviceGauges]:
        """The last picture of the devices, for a scrape."""
        for load in self.devices.loads:
            yield DeviceGauges(load.index, load.vram_used_mb, load.vram_free_mb, load.utilization_pct, load.temp_c)

    async def _read_text(self, path: Path) -> ModelText:
        try:
            return await asyncio.to_thread(read_text, path)
        except (WeightsError, TextError) as error:
            raise Problem(422, "bad_checkpoint", str(error), param="model") from error

    async def _begin(self, spec: ModelSpec) -> ResidentModel:
        source = self.catalogue.source(spec)
        loads = await self.devices.look()
        if spec.model_id in self._residents:  # somebody else began while we looked
            return self._residents[spec.model_id]
        parts = assign_all(spec, self.devices.hardware, loads, self._crowd(), self.devices.lost)
        plan = Plan(
            fetch=partial(self.catalogue.fetch, source),
            compile=self.renderers.compile,
            places=partial(self._places, spec, parts),
            admission=self.config.admission,
            gone=partial(self._forget, spec.model_id),
        )
        devices = tuple(sorted({index for part in parts for index in part}))
        resident = self._residents[spec.model_id] = ResidentModel(spec.model_id, spec, devices, plan)
        self._metrics.remember(spec.model_id)
        _log.info("loading %s on devices %s", spec.model_id, [list(part) for part in parts])
        return resident

    def _places(self, spec: ModelSpec, parts: Sequence[tuple[int, ...]], path: Path) -> Sequence[ReplicaSpec]:
        """Where each engine of the model at `path` will be."""
        platform = self.devices.platform
        return [
            ReplicaSpec(
                holder=spec.model_id if len(parts) == 1 else f"{spec.model_id}#{number}",
                model=spec.model_id,
                devices=devices,
                memory_mb=spec.memory_mb or self.config.engine.memory_mb,
                sharers=len(parts) if platform == "cpu" else 1,
                shares=self.devices,
                elsewhere=partial(self._elsewhere, spec),
                spec=partial(self._engine_spec, spec, path),
                start=partial(self._groups.start, spec),
                restarts=self._restarts,
            )
            for number, devices in enumerate(parts)
        ]

    def _engine_spec(self, spec: ModelSpec, path: Path, devices: tuple[int, ...], memory_mb: int) -> EngineSpec:
        return engine_spec(self.config, spec, self.devices.platform, devices, path, memory_mb=memory_mb)

    def _elsewhere(self, spec: ModelSpec, devices: tuple[int, ...]) -> tuple[int, ...]:
        """`devices`, or others where one of them is lost. Raises LoadError where there are no others."""
        lost = self.devices.lost
        if not any(index in lost for index in devices):
            return devices
        crowd = self._crowd()
        crowd.subtract(devices)
        return assign(spec, self.devices.hardware, self.devices.loads, crowd, lost)

    def _crowd(self) -> Counter[int]:
        """How many engines and lent ranks are on each device, or will be."""
        ours = [devices for resident in self.residents for devices in resident.occupied]
        lent = [rank.devices for rank in self.lender.lent]
        return Counter(index for devices in (*ours, *lent) for index in devices)

    def _forget(self, model_id: str) -> None:
        """The model is unloaded, whether or not anybody still waits for it."""
        del self._residents[model_id]
        self._metrics.forget(model_id)
        _log.info("unloaded %s", model_id)

    async def _lend(self, count: int) -> tuple[int, ...]:
        loads = await self.devices.look()
        able = len(loads) - len(self.devices.lost)
        some = ModelSpec(model_id="of another neuron", tensor_parallel=min(count, able))
        return assign(some, self.devices.hardware, loads, self._crowd(), self.devices.lost)

    async def _locate(self, spec: ModelSpec) -> Path:
        source = self.catalogue.source(spec)
        try:
            return await asyncio.to_thread(self.catalogue.fetch, source, _ignore)
        except WeightsError as error:
            raise LoadError(error.kind, error.message, error.extras) from error

    async def _watch(self) -> None:
        """Sees whether the engines still have the memory that they were granted, as long as the neuron runs."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._residents:
                continue
            try:
                await self.devices.look()
            except OSError as error:  # of one look
                _log.warning("the devices could not be looked at: %s", error)
                continue
            self.judge()

    def judge(self) -> None:
        """Says of every engine whether it can take new work, by the last picture of the devices."""
        picture, grants = self.devices.picture(), self.devices.grants
        for resident in self.residents:
            for replica in resident.replicas:
                given, before = grants.get(replica.holder), replica.shortage
                replica.shortage = shortage(given, picture, before) if given is not None else None
                if (before is None) != (replica.shortage is None):
                    _log.warning(
                        "%s %s", replica.holder, f"is short: {replica.shortage}" if before is None else "is well"
                    )

    async def _activate(self) -> None:
        """One default model after the other, so that each finds the memory the one before has left."""
        for spec in self.config.default_models:
            model_id = self.catalogue.canonical(spec.model_id)
            self.activation.pending.remove(spec.model_id)
            self.activation.in_progress = model_id
            await self._activate_one(attrs.evolve(spec, model_id=model_id))
            self.activation.in_progress = None

    async def _activate_one(self, spec: ModelSpec) -> None:
        try:
            await self.load(spec)
        except (LoadError, Problem) as error:
            self.activation.failed.append((spec.model_id, str(error)))
            return
        except AlreadyLoadedError:
            _log.info("%s was loaded before its turn", spec.model_id)
        except Exception as error:  # noqa: BLE001  # a fault of ours: the next default model has its turn all the same
            _log.exception("the default model %s could not be loaded", spec.model_id)
            self.activation.failed.append((spec.model_id, f"{type(error).__name__}: {error}"))
            return
        self.activation.completed.append(spec.model_id)


def _changed_at(path: Path) -> int:
    """When anything at `path` changed last, in ns: a folder itself does not change with what is written into its files."""
    try:
        return max(int(one.stat().st_mtime_ns) for one in (path, *(path.iterdir() if path.is_dir() else ())))
    except OSError:
        return 0


def _ignore(phase: str, done: int, total: int, unit: str) -> None:
    """Nobody asks how far a peer is."""
