"""One model this host has loaded, loads, or failed to load; must not know HTTP or other models."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from neuron_jax.config import AdmissionConfig, ModelSpec
from neuron_jax.daemon import tally
from neuron_jax.daemon.admission import Admission
from neuron_jax.daemon.balance import Busy, choose
from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.news import News
from neuron_jax.daemon.problems import insufficient_vram, recovering, unavailable
from neuron_jax.daemon.replica import Listener, Replica, ReplicaSpec
from neuron_jax.daemon.shares import Shortage
from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.text.errors import TextError
from neuron_jax.text.prompt import ChatFormat
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineLoad, Progress
from neuron_jax.workers.supervisor import EngineState, Phase

Fetch = Callable[[Callable[[str, int, int, str], None]], Path]
STATUS = {
    Phase.STARTING: "loading",
    Phase.READY: "loaded",
    Phase.RECOVERING: "recovering",
    Phase.DRAINING: "draining",
    Phase.FAILED: "failed",
    Phase.STOPPED: "draining",
}
_log = logging.getLogger("neuron.lifecycle")


class AbandonedError(Exception):
    """Raised inside a fetching thread when nobody wants the model any more."""


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
        self.max_context = 0
        self.progress: Progress | None = None
        self.error: LoadError | None = None
        self.replicas: tuple[Replica, ...] = ()
        self._devices = devices
        self._plan = plan
        self._listeners: list[Listener] = []
        self._ending: asyncio.Task[None] | None = None
        self._text: ModelText | None = None
        self._admission: Admission | None = None
        self._news = News()
        self._loading = asyncio.create_task(self._load(), name=f"load {model_id}")

    @property
    def status(self) -> str:
        """The word for it on the wire."""
        if self._ending is not None:
            return "draining"
        if self.error is not None:
            return "failed"
        return "loading" if not self._loading.done() else STATUS[self.state.phase]

    @property
    def state(self) -> EngineState:
        """Its engines' states as one; STARTING before there is a process."""
        return tally.joined(replica.state for replica in self.replicas)

    @property
    def last_error(self) -> str | None:
        """What went wrong last, of an engine in trouble first."""
        if self.error is not None:
            return self.error.message
        told = [replica.last_error for replica in self.replicas if replica.state.last_error == self.state.last_error]
        return told[0] if told else None

    @property
    def devices(self) -> tuple[int, ...]:
        """All devices of its engines, each once."""
        return tuple(sorted({i for one in self.replicas for i in one.devices})) if self.replicas else self._devices

    @property
    def serving(self) -> bool:
        """True once it was ready: then `text` and `admission` are there, even while the engine recovers."""
        return self._admission is not None

    @property
    def text(self) -> ModelText:
        """The model's text side."""
        assert self._text is not None
        return self._text

    @property
    def known_text(self) -> ModelText | None:
        """The text side, as soon as it was read."""
        return self._text

    @property
    def admission(self) -> Admission:
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
            raise recovering(self.id, self.last_error)
        if (short := self.shortage) is not None:
            raise insufficient_vram(self.id, short.device, short.free, short.required)

    def _check_alive(self) -> None:
        """Raises Problem when requests will never be taken again."""
        if self._ending is not None:
            raise unavailable(f"The model {self.id!r} is being unloaded.")
        if self.error is not None or self.state.phase is Phase.FAILED:
            raise unavailable(f"The model {self.id!r} failed: {self.last_error}")

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
        if self.error is not None:
            raise self.error
        if self._loading.cancelled():
            raise unavailable(f"Loading {self.id!r} was given up.")
        self._loading.result()

    @contextmanager
    def heard_by(self, listener: Listener) -> Iterator[None]:
        """Calls `listener` with every step of loading, the latest one first."""
        if self.progress is not None:
            listener(self.progress)
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def unload(self, drain_secs: float) -> None:
        """Refuses new work, waits for what is in flight, ends the processes. Whoever asks again waits for the same end."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(drain_secs), name=f"unload {self.id}")
            self._news.tell()
        await asyncio.shield(self._ending)

    async def _end(self, drain_secs: float) -> None:
        if self._admission is not None:
            self._admission.fail(unavailable(f"The model {self.id!r} is being unloaded."))
        if self.error is None:  # a load that failed is about to end by itself, and tells why
            self._loading.cancel()
        await asyncio.wait([self._loading])
        await self._stop_all(drain_secs)
        self._plan.gone()

    async def _stop_all(self, drain_secs: float) -> None:
        """A fault while one engine ends is told, and keeps neither the others nor the model from ending."""
        stops = (replica.stop(drain_secs) for replica in self.replicas)
        for replica, found in zip(self.replicas, await asyncio.gather(*stops, return_exceptions=True), strict=True):
            if isinstance(found, Exception):
                _log.error("%s did not end as it should", replica.holder, exc_info=found)

    async def _load(self) -> None:
        try:
            await self._load_steps()
        except LoadError as error:
            self.error = error
        except WeightsError as error:
            self.error = LoadError(error.kind, error.message, error.extras)
        except TextError as error:
            self.error = LoadError("bad_checkpoint", str(error))
        except EngineDied as error:
            self.error = LoadError("engine_failed" if error.kind == "exited" else error.kind, str(error))
        except OSError as error:
            self.error = LoadError("repo_fetch_failed", f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            _log.exception("loading %s waited for something that was cancelled", self.id)
            self.error = LoadError("internal", "what the load waited for was cancelled")
        except Exception as error:  # noqa: BLE001  # a fault of ours ends this load, and with it the wait of all who asked for it
            _log.exception("loading %s failed for a reason that nobody foresaw", self.id)
            self.error = LoadError("internal", f"{type(error).__name__}: {error}")
        finally:
            self.progress = None
        if self.error is not None:
            _log.error("loading %s failed: %s: %s", self.id, self.error.kind, self.error.message)
            await self._stop_all(0.0)

    async def _load_steps(self) -> None:
        path = await self._fetch()
        text = await asyncio.to_thread(read_text, path)
        if text.template is not None:
            await self._plan.compile(text.chat_format)
        self._text = text
        places = self._plan.places(path)
        self.replicas = tuple(
            Replica(place, hear=self._hear if index == 0 else _deaf, changed=self._changed)
            for index, place in enumerate(places)
        )
        # All of them, or none: what was asked for is told apart from what could be had only when it is refused.
        found = await asyncio.gather(*(replica.started() for replica in self.replicas))
        self._admission = Admission(
            slots=sum(ready.max_slots for ready in found),
            max_queue_depth=self._plan.admission.max_queue_depth,
            max_wait_secs=self._plan.admission.max_wait_secs,
        )
        self.max_context = min(ready.max_context for ready in found)
        self._take_stock()
        _log.info("%s serves: %d tokens of context, %d slots", self.id, self.max_context, self._admission.slots)

    async def _fetch(self) -> Path:
        loop = asyncio.get_running_loop()
        abandoned = False

        def report(phase: str, done: int, total: int, unit: str) -> None:
            if abandoned:
                raise AbandonedError(self.id)
            loop.call_soon_threadsafe(self._hear, Progress(phase, done, total, unit))

        try:
            return await asyncio.to_thread(self._plan.fetch, report)
        except asyncio.CancelledError:
            abandoned = True  # the thread ends itself at its next report
            raise

    def _hear(self, progress: Progress) -> None:
        self.progress = progress
        for listener in tuple(self._listeners):
            listener(progress)

    def _changed(self) -> None:
        """A state of an engine has changed."""
        self._news.tell()
        phase = self.state.phase
        if phase in (Phase.READY, Phase.FAILED):
            self.progress = None
        if self._admission is None:
            return
        if phase is Phase.FAILED:
            self._admission.fail(unavailable(f"The model {self.id!r} failed: {self.last_error}"))
        self._take_stock()

    def _take_stock(self) -> None:
        """Slots and context of the engines that serve; while none does, those of the last stay for the next.

        An engine that was started again with less memory may have less of both.
        """
        serving = [client.ready for client in self._clients().values()]
        if serving:
            self.max_context = min(ready.max_context for ready in serving)
            self.admission.resize(sum(ready.max_slots for ready in serving))


def _is_cancelled() -> bool:
    """Whether this task itself was told to end, rather than something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _deaf(_: Progress) -> None:
    """Nobody counts the progress of a model's second engine: it reads the same files, just behind the first."""
