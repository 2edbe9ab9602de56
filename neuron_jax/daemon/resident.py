"""One model this host has loaded, loads, or failed to load; must not know HTTP or other models."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
from attrs import frozen

from neuron_jax.config import AdmissionConfig, ModelSpec
from neuron_jax.daemon import tally
from neuron_jax.daemon.admission import AdmissionQueue
from neuron_jax.daemon.balance import Busy, choose
from neuron_jax.daemon.fetching import Fetch, fetched, load_error
from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.news import News
from neuron_jax.daemon.problems import Problem, insufficient_vram, recovering, unavailable
from neuron_jax.daemon.reloading import Served, check_text, swap
from neuron_jax.daemon.replica import Listener, Replica, ReplicaSpec
from neuron_jax.daemon.shares import Shortage
from neuron_jax.daemon.status import (
    Advanced,
    Capacity,
    DrainBegan,
    DrainEnded,
    Happening,
    LoadEnded,
    LoadRefused,
    ModelStage,
    ModelStatus,
    Placed,
    ReplicaChanged,
    ReplicaStatus,
    after,
)
from neuron_jax.errors import LoadError
from neuron_jax.text.errors import TemplateError
from neuron_jax.text.prompt import ChatFormat
from neuron_jax.weights.digest import digest
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineLoad, Progress

_log = logging.getLogger("neuron.lifecycle")


class AlreadyLoadedError(Exception):
    """The model serves already; callers treat it as success."""


@frozen(eq=False)
class Plan:
    """How one model is loaded. `fetch` blocks and gives a local path; `places` says of it where its engines will be.

    `compile` raises TemplateError when its chat template cannot be run. `gone` is told when the model was unloaded.
    """

    fetch: Fetch
    compile: Callable[[ChatFormat], Awaitable[None]]
    places: Callable[[Path], Sequence[ReplicaSpec]]
    admission: AdmissionConfig
    gone: Callable[[], None]


class ResidentModel:
    """Loads in a task of its own from the moment it is made; `loaded` waits for it, `unload` ends everything.

    A model has one engine or several alike. It serves while one of them does; which of them answers is a matter of the
    moment, so nobody keeps an engine longer than a request.
    """

    def __init__(self, model_id: str, spec: ModelSpec, devices: tuple[int, ...], plan: Plan) -> None:
        self.id = model_id
        self.spec = spec
        self.status = ModelStatus()
        self.replicas: tuple[Replica, ...] = ()
        self._devices = devices
        self._plan = plan
        self._listeners: list[Listener] = []
        self._ending: asyncio.Task[None] | None = None
        self._swapping = asyncio.Lock()
        self._served: Served | None = None
        self._text: ModelText | None = None
        self._admission: AdmissionQueue | None = None
        self._news = News()
        self._loading = asyncio.create_task(self._load(), name=f"load {model_id}")

    @property
    def devices(self) -> tuple[int, ...]:
        """All devices of its engines, each once."""
        return tuple(sorted({i for one in self.replicas for i in one.devices})) if self.replicas else self._devices

    @property
    def occupied(self) -> Sequence[tuple[int, ...]]:
        """The devices of each engine that is there or will be. What failed to load is on none."""
        if self.status.error is not None:
            return ()
        return [one.devices for one in self.replicas] or [self._devices]

    @property
    def serving(self) -> bool:
        """True once it was ready: then `text` and `admission` are there, even while the engine recovers."""
        return self.status.capacity is not None

    @property
    def max_context(self) -> int:
        """Tokens; 0 until it was ready."""
        return 0 if self.status.capacity is None else self.status.capacity.max_context

    @property
    def text(self) -> ModelText:
        """The model's text side."""
        assert self._text is not None
        return self._text

    @property
    def served(self) -> Served | None:
        """Which weights serve; None until their files are here."""
        return self._served

    @property
    def known_text(self) -> ModelText | None:
        """The text side, as soon as it was read."""
        return self._text

    @property
    def admission(self) -> AdmissionQueue:
        """The queue."""
        assert self._admission is not None
        return self._admission

    @property
    def client(self) -> EngineClient | None:
        """The first engine that serves, if there is one."""
        return next(iter(self._clients().values()), None)

    @property
    def load(self) -> EngineLoad:
        """How busy its engines are together; zeros without one."""
        return tally.total([replica.load for replica in self.replicas])

    @property
    def shortage(self) -> Shortage | None:
        """Set when none of its engines has the memory to begin anything new."""
        short = [one.shortage for one in self.replicas if one.client is not None]
        return short[0] if short and all(short) else None

    def check(self) -> None:
        """Raises Problem unless requests can be taken now."""
        self._check_alive()
        if not self.serving:
            raise unavailable(f"The model {self.id!r} is still loading.")
        if self.client is None:
            raise recovering(self.id, self.status.last_error)
        if (short := self.shortage) is not None:
            raise insufficient_vram(self.id, short.device, short.free, short.required)

    def _check_alive(self) -> None:
        """Raises Problem when requests will never be taken again."""
        if (refusal := self._refusal()) is not None:
            raise refusal

    def _refusal(self) -> Problem | None:
        match self.status.stage:
            case ModelStage.DRAINING | ModelStage.UNLOADED:
                return unavailable(f"The model {self.id!r} is being unloaded.")
            case ModelStage.FAILED:
                return unavailable(f"The model {self.id!r} failed: {self.status.last_error}")
        return None

    async def ready(self, seconds: float) -> bool:
        """True when there is an engine within `seconds`. Raises Problem when there will be none."""
        self._check_alive()
        if self.client is None:
            await self._news.wait(seconds)
            self._check_alive()
        return self.client is not None

    def engine(self, prompt: Sequence[int]) -> EngineClient:
        """The engine to submit `prompt` to; only right after `ready` has said that there is one."""
        clients = self._clients()
        roomy = {index: one for index, one in clients.items() if self.replicas[index].shortage is None} or clients
        busy = {index: Busy(one.open, one.ready.max_slots) for index, one in roomy.items()}
        return roomy[choose(busy, prompt)]

    def _clients(self) -> dict[int, EngineClient]:
        found = {index: replica.client for index, replica in enumerate(self.replicas)}
        return {index: client for index, client in found.items() if client is not None}

    async def loaded(self) -> None:
        """Returns when it serves for the first time. Raises LoadError, or Problem when it was given up."""
        await asyncio.wait([self._loading])
        if self._loading.cancelled():
            raise unavailable(f"Loading {self.id!r} was given up.")
        if (error := self._loading.result()) is not None:
            raise error

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Calls `listener` with every step of loading, the latest one first."""
        if self.status.progress is not None:
            listener(self.status.progress)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def reload(self, source: str, path: Path, *, in_place: bool) -> Served:
        """Its engines serve with the weights at `path`, which came from `source`; requests run on. One reload at a time.

        Raises LoadError where they do not fit or cannot be swapped, and Problem where the model does not serve.
        """
        async with self._swapping:
            self.check()
            assert self._served is not None, "a model that serves has files"
            self._check_swappable()
            try:
                theirs, found = await asyncio.to_thread(_read_files, path)
                check_text(self.text, theirs)
                await swap(self.replicas, path, in_place=in_place)
            except Exception as error:
                raise load_error(self.id, error) from error
            self.spec = attrs.evolve(self.spec, source=source)
            self._served = Served(source, found, self._served.reloads + 1)
            _log.info("%s serves the weights of %s (%s)", self.id, source, found)
            return self._served

    def _check_swappable(self) -> None:
        """Raises LoadError."""
        if "text" not in self.text.abilities.capabilities:
            raise LoadError("not_swappable", f"{self.id} reads whole texts; load it anew to serve other weights")
        clients = [replica.client for replica in self.replicas]
        if any(client is not None and client.others for client in clients):
            raise LoadError(
                "not_swappable", f"{self.id} is served by several ranks; load it anew to serve other weights"
            )
        if None in clients:
            raise recovering(self.id, self.status.last_error)

    async def unload(self, drain_secs: float) -> None:
        """Refuses new work, waits for what is in flight, ends the processes. Whoever asks again waits for the same end."""
        if self._ending is None:
            loading = self.status.stage is ModelStage.LOADING
            self._move(DrainBegan())
            if loading:  # a load that failed is about to end by itself, and tells why
                self._loading.cancel()
            self._ending = asyncio.create_task(self._end(drain_secs), name=f"unload {self.id}")
        await asyncio.shield(self._ending)

    async def _end(self, drain_secs: float) -> None:
        await asyncio.wait([self._loading])
        await self._stop_all(drain_secs)
        self._move(DrainEnded())
        self._plan.gone()

    async def _stop_all(self, drain_secs: float) -> None:
        """A fault while one engine ends is told, and keeps neither the others nor the model from ending."""
        stops = (replica.stop(drain_secs) for replica in self.replicas)
        for replica, found in zip(self.replicas, await asyncio.gather(*stops, return_exceptions=True), strict=True):
            if isinstance(found, Exception):
                _log.error("%s did not end as it should", replica.holder, exc_info=found)

    async def _load(self) -> LoadError | None:
        """What it failed of, once nothing of it is left."""
        try:
            await self._load_steps()
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            _log.exception("loading %s waited for something that was cancelled", self.id)
            error = LoadError("internal", "what the load waited for was cancelled")
        except Exception as found:  # noqa: BLE001  # a fault of ours ends this load, and with it the wait of all who asked for it
            error = load_error(self.id, found)
        else:
            return None
        _log.error("loading %s failed: %s: %s", self.id, error.kind, error.message)
        self._move(LoadRefused(error))
        await self._stop_all(0.0)
        return error

    async def _compile(self, path: Path, chat: ChatFormat) -> None:
        try:
            await self._plan.compile(chat)
        except TemplateError as error:
            raise bad_checkpoint(path, [str(error)]) from error

    async def _load_steps(self) -> None:
        path = await fetched(self._plan.fetch, self._hear)
        text, found = await asyncio.to_thread(_read_files, path)
        self._served = Served(self.spec.source or self.spec.model_id, found)
        for chat in text.chat_formats.values():
            await self._compile(path, chat)
        self._text = text
        places = self._plan.places(path)
        self._move(Placed(len(places)))
        self.replicas = tuple(
            Replica(place, hear=self._hear if index == 0 else _deaf, changed=partial(self._hear_of, index))
            for index, place in enumerate(places)
        )
        # All of them, or none: what was asked for is told apart from what could be had only when it is refused.
        started = await asyncio.gather(*(replica.started() for replica in self.replicas))
        offered = Capacity(min(one.max_context for one in started), sum(one.slots for one in started))
        self._admission = AdmissionQueue(
            slots=offered.slots,
            max_queue_depth=self._plan.admission.max_queue_depth,
            max_wait_secs=self._plan.admission.max_wait_secs,
        )
        self._move(LoadEnded(offered))
        _log.info("%s serves: %d tokens of context, %d slots", self.id, self.max_context, self._admission.slots)

    def _hear(self, progress: Progress) -> None:
        self._move(Advanced(progress))
        for listener in tuple(self._listeners):
            listener(progress)

    def _hear_of(self, index: int, replica: ReplicaStatus) -> None:
        self._move(ReplicaChanged(index, replica))

    def _move(self, happening: Happening) -> None:
        """The one place that changes the status; who waits for an engine hears of it, and the queue follows it."""
        self.status = after(self.status, happening)
        if not isinstance(happening, Advanced):
            self._news.tell()
        if self._admission is None:
            return
        if (refusal := self._refusal()) is not None:
            self._admission.fail(refusal)
        if self.status.capacity is not None:
            self._admission.resize(self.status.capacity.slots)


def _read_files(path: Path) -> tuple[ModelText, str]:
    """The text side of the files at `path`, and their digest."""
    return read_text(path), digest(path)


def _is_cancelled() -> bool:
    """Whether this task itself was told to end, rather than something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _deaf(_: Progress) -> None:
    """Nobody counts the progress of a model's second engine: it reads the same files, just behind the first."""
