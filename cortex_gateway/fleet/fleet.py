"""The fleet as the rest of the gateway sees it: carries out what Residency decides. Knows no dialect."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import httpx
from attrs import define, field

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.client import CONNECT_SECS, NeuronClient
from cortex_gateway.fleet.credentials import showing
from cortex_gateway.fleet.residency import Residency
from cortex_gateway.fleet.watch import Watcher
from cortex_gateway.metrics import Metrics
from cortex_gateway.placement import catalogue
from cortex_gateway.placement.catalogue import ModelEntry
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus

log = logging.getLogger(__name__)
MOST_IDLE_CONNECTIONS = 512
Reporter = Callable[[LoadStatus], None]


@define(kw_only=True, eq=False)
class Lease:
    """A replica that a request may use. It counts in flight from `Fleet.acquire` until `release` or the end of `async with`."""

    requested: str
    model: str
    node: str
    base_url: str
    cold: bool
    _fleet: "Fleet" = field(repr=False)
    _released: bool = False

    def release(self) -> None:
        """Give the replica back. Doing it again does nothing."""
        if not self._released:
            self._released = True
            self._fleet.tell(m.Returned(node=self.node, model=self.model))

    def suspect(self, reason: str) -> None:
        """The node could not be reached: no request goes there until it has answered a look."""
        self._fleet.tell(m.Suspected(node=self.node, reason=reason))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@define(eq=False)
class Pending:
    """Who waits for a ticket."""

    done: asyncio.Future[m.Grant | None]
    report: Reporter | None = None


class Fleet:
    """One per gateway; lives in one event loop from `start` to `close`.

    `transport` stands in for the network in tests; `clock` gives seconds and never goes back.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=MOST_IDLE_CONNECTIONS)
        timeout = httpx.Timeout(None, connect=CONNECT_SECS)
        self.client = httpx.AsyncClient(
            transport=transport,
            limits=limits,
            timeout=timeout,
            trust_env=False,
            event_hooks={"request": showing(config.neurons)},
        )
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._residency = Residency(config)
        self._numbers: Iterator[int] = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._watchers: dict[str, Watcher] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._work: dict[str, asyncio.Task[None]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._closing = False
        metrics.follow(self.snapshot)

    async def start(self) -> None:
        """Begin to watch every node, and wait until each has been looked at once."""
        for host in self._residency.hosts.values():
            client = NeuronClient(self.client, host.name, host.endpoint)
            self._watchers[host.name] = Watcher(
                client=client, tell=self.tell, every_secs=self._config.gateway.watch_secs
            )
        self._watching = [_begun(one.run(), f"watch {name}") for name, one in self._watchers.items()]
        await asyncio.gather(*(one.looked.wait() for one in self._watchers.values()))

    def drain(self) -> None:
        """From now on nobody is granted a replica, and who waits for one is refused; leases run to their end."""
        self._closing = True
        if self._alarm:
            self._alarm.cancel()
        for pending in self._pending.values():
            if not pending.done.done():
                pending.done.set_exception(errors.ShuttingDown("The gateway is going down."))

    async def close(self) -> None:
        """Drain, stop watching, close every connection. Loads under way go on in their nodes."""
        self.drain()
        tasks = [*self._watching, *self._work.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.client.aclose()

    # -- requests -------------------------------------------------------------------------------------------------

    async def acquire(self, model: str, *, request_id: str) -> Lease:
        """A replica that serves `model` (id or alias), loading it first where it must be.

        Raises ModelNotFound, NoHealthyNode, LoadFailed, ModelRecovering, InsufficientVram, Overloaded, ShuttingDown.
        Cancelling it gives up the place in the queue.
        """
        number = next(self._numbers)
        granted = await self._wait(m.Wanted(ticket=number, model=model, request_id=request_id), None)
        assert granted is not None, "a request is granted, never merely completed"
        base_url = self._residency.hosts[granted.node].endpoint
        return Lease(
            requested=model, model=granted.model, node=granted.node, base_url=base_url, cold=granted.cold, fleet=self
        )

    def lease_status(self, model: str) -> LoadStatus | None:
        """How far the load is that an `acquire` of `model` waits for; None where nothing is awaited."""
        return self._residency.status(self._residency.resolve(model) or model)

    async def load(
        self,
        model: str,
        *,
        node: str | None = None,
        quant: str | None = None,
        kv_dtype: str | None = None,
        deterministic: bool | None = None,
        tensor_parallel: int | None = None,
        hosts: Sequence[str] | None = None,
        ranks: Literal["host", "device"] | None = None,
        report: Reporter | None = None,
    ) -> None:
        """Load it, on `node` or where it fits best, and wait until it serves. Raises as `acquire` does, and InvalidBody.

        `hosts` are the only nodes that it may be on, together where none has enough devices; `node` then leads.
        """
        asked = m.LoadAsked(
            ticket=next(self._numbers),
            model=model,
            node=node,
            quant=quant,
            kv_dtype=kv_dtype,
            deterministic=deterministic,
            tensor_parallel=tensor_parallel,
            hosts=tuple(hosts or ()),
            ranks=ranks,
        )
        await self._wait(asked, report)

    async def unload(self, model: str, *, node: str | None = None) -> None:
        """Unload it from `node` or from everywhere, each once its last request has ended. 404 where it is not loaded."""
        await self._wait(m.UnloadAsked(ticket=next(self._numbers), model=model, node=node), None)

    # -- what there is --------------------------------------------------------------------------------------------

    def snapshot(self) -> FleetSnapshot:
        return self._residency.snapshot()

    def catalogue_entries(self) -> list[ModelEntry]:
        """Every model and alias, sorted by name."""
        return list(catalogue.entries(self._residency.catalogue, self.snapshot()))

    def health(self) -> dict[str, Any]:
        """The body of GET /health."""
        nodes = self.snapshot().nodes
        healthy = [node for node in nodes if node.healthy]
        broken = [
            {
                "node": node.name,
                "model": replica.model,
                "reason": replica.unservable_reason,
                "detail": replica.unservable_detail,
            }
            for node in healthy
            for replica in node.replicas
            if replica.status == "loaded" and not replica.servable
        ]
        status = "degraded" if not healthy else "impaired" if broken else "ok"
        body: dict[str, Any] = {"status": status, "nodes": {"healthy": len(healthy), "total": len(nodes)}}
        return {**body, "unservable": broken} if broken else body

    def locate_tokenizer(self, model: str) -> list[str]:
        """Base URLs of healthy nodes that list the model, those that have it loaded first: they can count its tokens."""
        wanted = self._residency.resolve(model)
        found = [
            (node, one) for node in self.snapshot().nodes if node.healthy and (one := node.replica(wanted or model))
        ]
        return [node.endpoint for node, one in sorted(found, key=lambda item: not item[1].serving)]

    def resolve(self, model: str) -> str:
        """The id behind a name. Raises ModelNotFound with the nearest names."""
        resolved = self._residency.resolve(model)
        if resolved is None:
            raise self._residency.unknown(model)
        return resolved

    def look(self) -> None:
        """Look at every node now instead of at the next turn."""
        for watcher in self._watchers.values():
            watcher.poked.set()

    # -- the loop: every change of residency passes here, one at a time ----------------------------------------------

    def tell(self, event: m.Event) -> None:
        """Hand an event to the owner of residency and carry out what follows from it."""
        if self._closing and not isinstance(event, m.Returned):
            return
        for effect in self._residency.handle(event, self._clock()):
            self._carry_out(effect)
        if not self._closing:
            self._set_alarm()

    async def _wait(self, event: m.Wanted | m.LoadAsked | m.UnloadAsked, report: Reporter | None) -> m.Grant | None:
        if self._closing:
            raise errors.ShuttingDown("The gateway is going down.")
        pending = self._pending[event.ticket] = Pending(asyncio.get_running_loop().create_future(), report)
        try:
            self.tell(event)
            return await pending.done
        except asyncio.CancelledError:
            self._give_up(event.ticket, pending)
            raise
        finally:
            del self._pending[event.ticket]

    def _give_up(self, ticket: int, pending: Pending) -> None:
        """The caller was cancelled; perhaps in the very moment in which it was granted."""
        granted = (
            None
            if pending.done.cancelled() or not pending.done.done() or pending.done.exception()
            else pending.done.result()
        )
        if granted is not None:
            self.tell(m.Returned(node=granted.node, model=granted.model))
        else:
            self.tell(m.Left(ticket=ticket))

    def _carry_out(self, effect: m.Effect) -> None:
        match effect:
            case m.Grant() | m.Complete() | m.Refuse() | m.Report():
                self._answer(effect)
            case m.StartLoad():
                self._begin(effect.node, self._load(effect))
            case m.StartUnload():
                self._begin(effect.node, self._unload(effect))
            case m.Abort():
                self._work[effect.node].cancel()
            case m.Look():
                self._watchers[effect.node].poked.set()
            case m.Evicted():
                self._metrics.observe_eviction(effect.model, effect.node)

    def _answer(self, effect: m.Grant | m.Complete | m.Refuse | m.Report) -> None:
        pending = self._pending.get(effect.ticket)
        if pending is None or pending.done.done():
            if isinstance(effect, m.Grant):
                self.tell(m.Returned(node=effect.node, model=effect.model))
            return
        match effect:
            case m.Grant():
                pending.done.set_result(effect)
            case m.Complete():
                pending.done.set_result(None)
            case m.Refuse():
                pending.done.set_exception(effect.error)
            case m.Report():
                if pending.report:
                    pending.report(effect.status)

    def _begin(self, node: str, work: Coroutine[Any, Any, None]) -> None:
        self._work[node] = _begun(self._finish(node, work), f"work on {node}")

    async def _finish(self, node: str, work: Coroutine[Any, Any, None]) -> None:
        error: errors.CortexError | None = None
        try:
            await work
        except errors.CortexError as failure:
            error = (
                failure
                if isinstance(failure, errors.Unavailable)
                else errors.LoadFailed(failure.message, kind="node_failed")
            )
        except asyncio.CancelledError:
            if self._closing:
                raise
            error = errors.LoadFailed(f"{node} has gone away.", kind="node_failed")
        except Exception:
            self.tell(m.Finished(node=node, error=errors.LoadFailed("The gateway failed.", kind="gateway_failed")))
            raise
        self.tell(m.Finished(node=node, error=error))

    async def _load(self, effect: m.StartLoad) -> None:
        seconds = self._config.gateway.load_timeout_secs
        client = self._watchers[effect.node].client
        try:
            async with asyncio.timeout(seconds):
                await client.load(
                    effect.spec,
                    timeout_secs=seconds,
                    report=lambda status: self.tell(m.Progressed(node=effect.node, status=status)),
                )
        except TimeoutError:
            message = f"{effect.spec.model_id} was not loaded on {effect.node} within {seconds:.0f} s."
            raise errors.LoadFailed(message, kind="load_timeout") from None

    async def _unload(self, effect: m.StartUnload) -> None:
        client = self._watchers[effect.node].client
        await client.unload(effect.model, drain_secs=self._config.gateway.drain_secs)

    def _set_alarm(self) -> None:
        """Wake the owner when time alone changes something."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        wake = self._residency.next_wake()
        if wake is not None:
            delay = max(0.0, wake - self._clock())
            self._alarm = asyncio.get_running_loop().call_later(delay, self.tell, m.Ticked())


def _begun(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is heard of, though nobody awaits it before the end."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_failure)
    return task


def _tell_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.critical("%s has failed", task.get_name(), exc_info=error)
