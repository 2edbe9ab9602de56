"""The one owner of loaded models: load, unload, what is loaded, what could be; must not know HTTP.

Everything here runs in the event loop's thread; `_residents` is written by `_begin` and `_forget` only.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import attrs

from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.adapters import SEPARATOR, names_of, number_of
from neuron_jax.daemon.catalogue import Catalogue
from neuron_jax.daemon.default_models import DefaultModels
from neuron_jax.daemon.devices import Devices
from neuron_jax.daemon.fetching import fetched, load_error
from neuron_jax.daemon.lending import RankLender
from neuron_jax.daemon.metrics import Metrics, ModelGauges
from neuron_jax.daemon.model_files import ModelFiles
from neuron_jax.daemon.model_text import ModelText
from neuron_jax.daemon.placing import Placing
from neuron_jax.daemon.problems import model_not_found, shutting_down
from neuron_jax.daemon.reloading import Served
from neuron_jax.daemon.replica import Listener
from neuron_jax.daemon.resident import AlreadyLoadedError, Plan, ResidentModel
from neuron_jax.daemon.status import ModelStage
from neuron_jax.errors import LoadError
from neuron_jax.hardware.records import DeviceLoad
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.frames import Progress
from neuron_jax.workers.process import DEFAULT_COMMAND
from neuron_jax.workers.renderers import Renderers
from neuron_jax.workers.supervisor import RESTARTS, RestartPolicy

RENDER_MB, COPIES = 256, 8
"""MiB for rendering one chat: for any template, and for so many copies of the longest request."""
_log = logging.getLogger("neuron.lifecycle")


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
        self.files = ModelFiles(config, self.catalogue, devices.platform)
        self.default_models = DefaultModels(config.default_models, self.catalogue.canonical, self.load)
        self.closing = False
        self._placing = Placing(config, devices, command, restarts, self._occupied)
        self.lender = RankLender(
            config,
            devices,
            command=command,
            read_model=self.catalogue.spec,
            locate=self._locate,
            choose=self._placing.lend,
        )
        self.renderers = Renderers(RENDER_MB + COPIES * config.server.max_body_mb, config.environ)
        self._metrics = metrics
        self._residents: dict[str, ResidentModel] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._reloads: set[asyncio.Task[Served]] = set()
        devices.keep_free(config.engine.min_free_mb)

    def start(self) -> None:
        """Begins to load the default models, and to look at the devices."""
        self._tasks = [
            asyncio.create_task(self.default_models.load_all(), name="default models"),
            asyncio.create_task(self.devices.watch(), name="devices"),
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
        loading = [resident for resident in self._residents.values() if resident.status.stage is ModelStage.LOADING]
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
        return self.addressed(name, adapters=False)[0]

    def addressed(self, name: str, *, adapters: bool = True) -> tuple[ResidentModel, int]:
        """The same, and the number of the adapter that the name asks for, 0 for none."""
        if self.closing:
            raise shutting_down()
        found = self._named(name) if adapters else (self.resident(name), 0)
        resident, number = found
        if resident is None:
            beside = [one for each in self.residents for one in names_of(each.id, each.spec.adapters)]
            raise model_not_found(name, [*self._residents, *beside])
        resident.check()
        return resident, number

    def _named(self, name: str) -> tuple[ResidentModel | None, int]:
        """A model by its own name, else by that of one of its adapters."""
        if (resident := self.resident(name)) is not None:
            return resident, 0
        base, _, adapter = name.rpartition(SEPARATOR)
        resident = self.resident(base)
        number = None if resident is None else number_of(adapter, resident.spec.adapters)
        return (None, 0) if number is None else (resident, number)

    async def load(self, spec: ModelSpec, listener: Listener = lambda _: None) -> None:
        """Returns when the model serves; callers of the same model share one load, which goes on without them.

        Raises AlreadyLoadedError, LoadError, or Problem when the neuron ends or the model is unloaded meanwhile.
        """
        if self.closing:
            raise shutting_down()
        while (resident := self._residents.get(spec.model_id)) and resident.status.ended:
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

    async def reload(self, name: str, source: str | None, *, in_place: bool) -> Served:
        """Other weights for the model called `name`, from `source` or from where its own are; who waits may leave.

        Raises Problem where it does not serve, LoadError where it cannot serve with them.
        """
        resident = self.serving(name)
        spec = attrs.evolve(resident.spec, source=source or resident.spec.source)
        try:
            found = await fetched(partial(self.catalogue.fetch, self.catalogue.source(spec)), _ignore_step)
        except Exception as error:
            raise load_error(resident.id, error) from error
        work = resident.reload(spec.source or spec.model_id, found, in_place=in_place)
        task = asyncio.create_task(work, name=f"reload {resident.id}")
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return await asyncio.shield(task)

    async def text(self, name: str) -> tuple[ModelText, int]:
        """A model's text side and context limit, from its files if it is not loaded. Raises Problem 404."""
        resident, _ = self._named(name)
        if resident is not None and resident.serving:
            return resident.text, resident.max_context
        return await self.files.text(name)

    def model_gauges(self) -> Iterable[ModelGauges]:
        """The numbers of the moment, for a scrape."""
        for resident in self.residents:
            queue = resident.admission if resident.serving else None
            yield ModelGauges(
                model=resident.id,
                up=resident.status.stage is ModelStage.LOADED,
                load=resident.load,
                in_flight=queue.in_flight if queue else 0,
                queued=queue.queued if queue else 0,
                restarts=resident.status.restarts,
                reloads=resident.served.reloads if resident.served else 0,
                weights=resident.served.digest if resident.served else "",
            )

    def device_gauges(self) -> Iterable[DeviceLoad]:
        """The last picture of the devices, for a scrape."""
        return self.devices.loads

    async def _begin(self, spec: ModelSpec) -> ResidentModel:
        source = self.catalogue.source(spec)
        await self.devices.look()
        if spec.model_id in self._residents:  # somebody else began while we looked
            return self._residents[spec.model_id]
        parts = self._placing.assign(spec)
        plan = Plan(
            fetch=partial(self.catalogue.fetch, source),
            compile=self.renderers.compile,
            places=partial(self._placing.replicas, spec, parts),
            admission=self.config.admission,
            gone=partial(self._forget, spec.model_id),
        )
        devices = tuple(sorted({index for part in parts for index in part}))
        resident = self._residents[spec.model_id] = ResidentModel(spec.model_id, spec, devices, plan)
        self._metrics.remember(spec.model_id)
        _log.info("loading %s on devices %s", spec.model_id, [list(part) for part in parts])
        return resident

    def _occupied(self) -> Iterable[tuple[int, ...]]:
        """The devices of each engine and each lent rank that is here, or will be."""
        yield from (devices for resident in self.residents for devices in resident.occupied)
        yield from (rank.devices for rank in self.lender.lent)

    def _forget(self, model_id: str) -> None:
        """The model is unloaded, whether or not anybody still waits for it."""
        del self._residents[model_id]
        self._metrics.forget(model_id)
        _log.info("unloaded %s", model_id)

    async def _locate(self, spec: ModelSpec) -> Path:
        source = self.catalogue.source(spec)
        try:
            return await asyncio.to_thread(self.catalogue.fetch, source, _ignore)
        except WeightsError as error:
            raise LoadError(error.kind, error.message, error.extras) from error


def _ignore_step(_: Progress) -> None:
    """Nobody asks how far the files of a reload are."""


def _ignore(phase: str, done: int, total: int, unit: str) -> None:
    """Nobody asks how far a peer is."""
