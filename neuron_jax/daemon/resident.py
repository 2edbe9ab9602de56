"""One model this host has loaded, loads, or failed to load; must not know HTTP or other models."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from neuron_jax.config import AdmissionConfig, ModelSpec
from neuron_jax.daemon.admission import Admission
from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.problems import recovering, unavailable
from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.text.errors import TextError
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineLoad, EngineSpec, Progress
from neuron_jax.workers.supervisor import Phase, RestartPolicy, State, Supervisor

Listener = Callable[[Progress], None]
Fetch = Callable[[Callable[[str, int, int, str], None]], Path]
StartEngine = Callable[[EngineSpec, Listener], Awaitable[EngineClient]]
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
    """How one model is loaded. `fetch` blocks and gives a local path; `engine_spec` makes the engine's spec of it."""

    fetch: Fetch
    engine_spec: Callable[[Path], EngineSpec]
    start: StartEngine
    admission: AdmissionConfig
    restarts: RestartPolicy


class Resident:
    """Loads in a task of its own from the moment it is made; `loaded` waits for it, `unload` ends everything."""

    def __init__(self, model_id: str, spec: ModelSpec, devices: tuple[int, ...], plan: Plan) -> None:
        self.id = model_id
        self.spec = spec
        self.devices = devices
        self.max_context = 0
        self.progress: Progress | None = None
        self.error: LoadError | None = None
        self._plan = plan
        self._listeners: list[Listener] = []
        self._ending: asyncio.Task[None] | None = None
        self._text: ModelText | None = None
        self._admission: Admission | None = None
        self._supervisor: Supervisor | None = None
        self._news = asyncio.Event()
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
    def state(self) -> State:
        """The engine's state; STARTING before there is a process."""
        return self._supervisor.state if self._supervisor else State()

    @property
    def last_error(self) -> str | None:
        """What went wrong last."""
        return self.error.message if self.error is not None else self.state.last_error

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
        """The engine that serves, if there is one."""
        return self._supervisor.serving if self._supervisor else None

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is; zeros without one."""
        return self.client.load if self.client is not None else EngineLoad()

    def check(self) -> None:
        """Raises Problem unless requests can be taken now."""
        self._check_alive()
        if not self.serving:
            raise unavailable(f"The model {self.id!r} is still loading.")
        if self.client is None:
            raise recovering(self.id, self.last_error)

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
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
            self._check_alive()
        return self.client is not None

    def engine(self) -> EngineClient:
        """The engine to submit to; only right after `ready` has said that there is one."""
        assert self.client is not None
        return self.client

    async def loaded(self) -> None:
        """Returns when it serves for the first time. Raises LoadError, or Problem when it was given up."""
        await asyncio.wait([self._loading])
        if self._loading.cancelled():
            raise unavailable(f"Loading {self.id!r} was given up.")
        self._loading.result()
        if self.error is not None:
            raise self.error

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
        """Refuses new work, waits for what is in flight, ends the process. Whoever asks again waits for the same end."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(drain_secs), name=f"unload {self.id}")
            self._tell()
        await asyncio.shield(self._ending)

    async def _end(self, drain_secs: float) -> None:
        if self._admission is not None:
            self._admission.fail(unavailable(f"The model {self.id!r} is being unloaded."))
        if not self._loading.done():
            self._loading.cancel()
        await asyncio.wait([self._loading])
        if self._supervisor is not None:
            await self._supervisor.stop(drain_secs)

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
            self.error = LoadError("engine_failed", str(error))
        except OSError as error:
            self.error = LoadError("repo_fetch_failed", f"{type(error).__name__}: {error}")
        finally:
            self.progress = None
        if self.error is not None:
            _log.error("loading %s failed: %s: %s", self.id, self.error.kind, self.error.message)

    async def _load_steps(self) -> None:
        path = await self._fetch()
        self._text = await asyncio.to_thread(read_text, path)
        spec = self._plan.engine_spec(path)
        self._supervisor = Supervisor(
            self.id, lambda: self._start(spec), changed=self._changed, policy=self._plan.restarts
        )
        ready = await self._supervisor.started()
        _log.info("%s serves: %d tokens of context, %d slots", self.id, ready.max_context, ready.max_slots)
        self.max_context = ready.max_context
        self._admission = Admission(
            seats=ready.max_slots,
            max_queue_depth=self._plan.admission.max_queue_depth,
            max_wait_secs=self._plan.admission.max_wait_secs,
        )

    async def _start(self, spec: EngineSpec) -> EngineClient:
        return await self._plan.start(spec, self._hear)

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

    def _tell(self) -> None:
        """Wakes up everybody who waits for an engine."""
        self._news.set()
        self._news = asyncio.Event()

    def _changed(self, state: State) -> None:
        self._tell()
        if state.phase in (Phase.READY, Phase.FAILED):
            self.progress = None
        if state.phase is Phase.FAILED and self._admission is not None:
            self._admission.fail(unavailable(f"The model {self.id!r} failed: {state.last_error}"))
