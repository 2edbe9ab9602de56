"""An engine, the memory it gets and the loop it is watched by, all in a test's hand: no process, no clock, no thread."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from neuron_jax.daemon.shares import MemoryGrant, MemoryRequest, Shortage
from neuron_jax.errors import EngineDied
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec, Ready


class HandLoop(asyncio.SelectorEventLoop):
    """A loop whose clock and whose threads are in the test's hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.threads = HandThreads()
        self.set_default_executor(self.threads)

    def time(self) -> float:
        return self.now

    def rest(self) -> None:
        """Runs until everybody waits for something that only the test can give."""
        self.run_until_complete(_turns())


async def _turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


class HandThreads(ThreadPoolExecutor):
    """Work that is done when the test says so."""

    def __init__(self) -> None:
        super().__init__(1)
        self._waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # a thread that runs cannot be called off
        self._waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    @property
    def busy(self) -> bool:
        """True while there is something to do, also for those who have gone."""
        return bool(self._waiting)

    def work(self) -> None:
        """Does what was asked for first; nobody may wait for it any more."""
        future, work = self._waiting.pop(0)
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001 - as a thread does
            future.set_exception(error)


def ready(max_context: int, max_slots: int) -> Ready:
    return Ready(
        max_context=max_context,
        max_slots=max_slots,
        page_size=16,
        pages=8,
        quant="f32",
        quant_reason="",
        kv_dtype="f32",
        kv_reason="",
        attention="xla",
        attention_reason="",
        compute_dtype="f32",
        devices=(),
        plan=(),
        load_seconds=0.0,
    )


class HandEngine(EngineClient):
    """An engine that serves until `die`, or until somebody closes it; `work` holds up a drain."""

    def __init__(self, says: Ready) -> None:
        super().__init__(EngineSpec(model_id="tiny", path=""), lambda _: None)
        self._says = says

    @property
    def ready(self) -> Ready:
        return self._says

    @property
    def pid(self) -> int:
        return 1

    @property
    def pids(self) -> Sequence[int]:
        return [1]

    def work(self) -> None:
        """Something is in flight that does not end."""
        self._idle.clear()

    def die(self, kind: str) -> None:
        self.died.set_result(EngineDied(f"died of {kind}", kind))

    async def close(self) -> None:
        if not self.died.done():
            self.died.set_result(EngineDied("was closed"))


class HandShares:
    """Memory for everybody, which comes back from the engines that have ended when `back` is set."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.back = asyncio.Event()

    async def place(self, request: MemoryRequest) -> MemoryGrant:
        self.held.add(request.holder)
        return MemoryGrant(request.holder, request.model, request.devices, 100, settled=True)

    def settle(self, holder: str, pids: Sequence[int], planned_mb: int) -> MemoryGrant:
        assert holder in self.held
        return MemoryGrant(holder, "tiny", (0,), planned_mb, settled=True, pids=tuple(pids))

    def put_back(self, holder: str, before: MemoryGrant | None) -> None:
        if before is None:
            self.held.discard(holder)

    def ended(self, holder: str) -> None:
        assert holder in self.held

    def release(self, holder: str) -> None:
        self.held.discard(holder)

    async def returned(self, holder: str) -> None:
        await self.back.wait()

    async def look(self, *, fresh: bool = False) -> object:
        return None

    def shortage(self, holder: str) -> Shortage | None:
        return None

    def lose(self, devices: tuple[int, ...], reason: str) -> None:
        raise AssertionError(f"{devices} are not lost: {reason}")
