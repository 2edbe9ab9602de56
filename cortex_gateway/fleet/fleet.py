"""The fleet as the rest of the gateway sees it: carries out what Residency decides. Knows no dialect."""

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Self, assert_never

import httpx
from attrs import define, field

from cortex_gateway import errors
from cortex_gateway.config import Config, Neuron
from cortex_gateway.context import RequestContext
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.client import CONNECT_SECS, NeuronClient
from cortex_gateway.fleet.commands import not_loaded
from cortex_gateway.fleet.credentials import showing, shown
from cortex_gateway.fleet.discovery import Finder, Resolve, services
from cortex_gateway.fleet.residency import Residency
from cortex_gateway.fleet.watch import Watcher
from cortex_gateway.metrics import Metrics
from cortex_gateway.placement import catalogue
from cortex_gateway.placement.catalogue import ModelEntry
from cortex_gateway.placement.load_options import UNSAID, LoadOptions
from cortex_gateway.placement.outlook import Outlook
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus

log = logging.getLogger(__name__)
Reporter = Callable[[LoadStatus], None]


@define(kw_only=True, eq=False)
class Lease:
    """A replica that a request may use. It counts in flight from `Fleet.acquire` until `release` or the end of `async with`.

    That block is cut short, and raises UpstreamReadFailed, where the node falls silent for good: neither it nor its host
    says anything then, and whoever waits for an answer would wait for ever.

    Attributes:
        heard: how many bytes of an answer have come. Where they go on coming, only looks at the node are in vain.
    """

    requested: str
    model: str
    node: str
    base_url: str
    cold: bool
    _fleet: "Fleet" = field(repr=False)
    _sent: float
    _trial: bool
    _served: bool | None = None
    _failure: str = ""
    heard: Callable[[], int] = lambda: 0
    _limit: asyncio.Timeout = field(factory=lambda: asyncio.timeout(None), init=False, repr=False)
    _waiting: bool = field(default=False, init=False)
    _released: bool = False

    def release(self) -> None:
        """Give the replica back. Doing it again does nothing."""
        if self._released:
            return
        self._released = True
        self._fleet.forget(self)
        ended = m.Returned(
            node=self.node,
            model=self.model,
            served=self._served,
            failure=self._failure,
            sent=self._sent,
            trial=self._trial,
        )
        self._fleet.tell(ended)

    def suspect(self, reason: str) -> None:
        """The node could not be reached: no request goes there until it has answered a look."""
        self._fleet.tell(m.Suspected(node=self.node, reason=reason))

    def cut(self) -> None:
        """No answer is to be expected any more."""
        if self._waiting:
            self._limit.reschedule(asyncio.get_running_loop().time())

    def absent(self) -> None:
        """The node has not loaded the model any more: it is looked at before it is asked again."""
        self._fleet.tell(m.Absent(node=self.node, model=self.model))

    def begun(self) -> None:
        """A good answer has begun."""
        if self._trial:
            self._fleet.tell(m.Begun(node=self.node, model=self.model))

    def served(self) -> None:
        """The answer has ended well."""
        if self._served is None:
            self._served = True

    def failed(self, reason: str) -> None:
        """The replica, not the request, was at fault. A replica that fails again and again is given a rest."""
        self._served, self._failure = False, reason

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._waiting = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting = False
        self.release()
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            message = f"The node {self.node} has stopped answering, so its answer is no longer waited for."
            raise errors.UpstreamReadFailed(message) from None


@define(eq=False)
class Pending:
    """Who waits for a ticket."""

    done: asyncio.Future[m.Grant | None]
    report: Reporter | None = None


class Fleet:
    """One per gateway; lives in one event loop from `start` to `close`.

    `transport` is the way to the nodes, this fleet's to close; `resolve` stands in for a name server in tests; `clock` gives
    seconds and never goes back.
    """

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        *,
        transport: httpx.AsyncBaseTransport,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = services,
    ) -> None:
        self._transport = transport
        self._shown = shown(config.neurons)
        self._credentials = showing(self._shown)
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(None, connect=CONNECT_SECS),
            trust_env=False,
            event_hooks={"request": self._credentials},
        )
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._resolve = resolve
        self._residency = Residency(config)
        self._numbers: Iterator[int] = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._watchers: dict[str, Watcher] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._finding: list[asyncio.Task[None]] = []
        self._work: dict[str, asyncio.Task[None]] = {}
        self._leases: set[Lease] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._inbox: deque[m.Event] = deque()
        self._telling = False
        self._closing = False
        metrics.follow(self.snapshot)

    async def start(self) -> None:
        """Begin to watch every node, and wait until each that is known, or named at once, has been looked at."""
        for host in self._residency.hosts.values():
            self._watch(host.name, host.endpoint)
        finders = [Finder(service=one, tell=self._listed, resolve=self._resolve) for one in self._config.discovery]
        self._finding = [_begun(one.run(), f"find {one.service.srv}") for one in finders]
        await asyncio.gather(*(one.asked.wait() for one in finders))
        await asyncio.gather(*(one.looked.wait() for one in self._watchers.values()))

    def _listed(self, service: str, neurons: tuple[Neuron, ...]) -> None:
        self.tell(m.Listed(service=service, neurons=neurons))

    def _watch(self, node: str, endpoint: str) -> None:
        it = self._config.gateway
        self._watchers[node] = Watcher(
            client=NeuronClient(self._client, node, endpoint),
            tell=self.tell,
            every_secs=it.watch_secs,
            within_secs=it.look_timeout_secs,
        )
        self._watching[node] = _begun(self._watchers[node].run(), f"watch {node}")

    def _unwatch(self, node: str) -> None:
        self._watching.pop(node).cancel()
        self._watchers.pop(node).looked.set()

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
        tasks = [*self._finding, *self._watching.values(), *self._work.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    # -- requests -------------------------------------------------------------------------------------------------

    async def acquire(self, model: str, context: RequestContext) -> Lease:
        """A replica that serves `model` (id or alias), loading it first where it must be.

        Raises ModelNotFound, NoHealthyNode, LoadFailed, ModelRecovering, InsufficientVram, Overloaded, ShuttingDown.
        Cancelling it gives up the place in the queue.
        """
        return await self._lease(m.Wanted(ticket=next(self._numbers), model=model, context=context))

    async def another(self, model: str, context: RequestContext, *, besides: Collection[str]) -> Lease | None:
        """A replica that serves `model` now on none of the nodes `besides`, which have failed this request; None = no other.

        Raises ModelNotFound, ShuttingDown.
        """
        event = m.Wanted(ticket=next(self._numbers), model=model, context=context, besides=frozenset(besides))
        try:
            return await self._lease(event)
        except errors.NoOtherReplica:
            return None

    async def _lease(self, event: m.Wanted) -> Lease:
        granted = await self._wait(event, None)
        assert granted is not None, "a request is granted, never merely completed"
        lease = Lease(
            requested=event.model,
            model=granted.model,
            node=granted.node,
            base_url=self._residency.hosts[granted.node].endpoint,
            cold=granted.cold,
            fleet=self,
            sent=self._clock(),
            trial=granted.trial,
        )
        self._leases.add(lease)
        return lease

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Ask a node; the body of its answer is not read yet. Raises httpx.TransportError.

        Not by the client: its cookies and redirects, which no node has, cost as much as all else that sending takes.
        """
        for show in self._credentials:
            await show(request)
        return await self._transport.handle_async_request(request)

    def forget(self, lease: Lease) -> None:
        """It was given back."""
        self._leases.discard(lease)

    async def load(
        self,
        model: str,
        *,
        node: str | None = None,
        options: LoadOptions = UNSAID,
        reload: bool = False,
        report: Reporter | None = None,
    ) -> None:
        """Load it, on `node` or where it fits best, and wait until it serves.

        `options.hosts` are the only nodes that it may be on, together where none has enough devices; `node` then leads. What is
        loaded already leaves first with `reload`; without it AlreadyLoaded says where that is not as asked for.

        Raises as `acquire` does, InvalidBody and AlreadyLoaded.
        """
        asked = m.LoadAsked(
            ticket=next(self._numbers),
            model=model,
            node=node,
            options=options,
            reload=reload,
        )
        await self._wait(asked, report)

    async def unload(self, model: str, *, node: str | None = None) -> None:
        """Unload it from `node` or from everywhere, each once its last request has ended. 404 where it is not loaded."""
        await self._wait(m.UnloadAsked(ticket=next(self._numbers), model=model, node=node), None)

    async def reload(
        self, model: str, *, node: str | None = None, source: str | None = None, in_place: bool = False
    ) -> dict[str, Any]:
        """Other weights for the replicas of a model, on `node` or one node after the other; by node which serve then.

        Raises LoadFailed of the first that refuses, which says where they are in place already; 404 where it is not loaded.
        """
        wanted = self.resolve(model)
        snapshot = self.snapshot()
        if node is not None and node not in self._watchers:
            raise errors.InvalidBody(f"There is no node {node!r}; there are {', '.join(self._watchers)}.", param="node")
        there = [one.name for one in snapshot.nodes if (found := one.replica(wanted)) and found.status == "loaded"]
        chosen = [name for name in there if node in (None, name)]
        if not chosen:
            raise not_loaded(wanted, node)
        done: dict[str, Any] = {}
        seconds = self._config.gateway.load_timeout_secs
        for name in chosen:
            client = self._watchers[name].client
            try:
                done[name] = await client.reload(wanted, source=source, in_place=in_place, timeout_secs=seconds)
            except errors.LoadFailed as error:
                already = f" It serves them on {', '.join(done)} already." if done else ""
                raise errors.LoadFailed(f"{name}: {error.message}{already}", **error.extras) from error
        return done

    # -- what there is --------------------------------------------------------------------------------------------

    def snapshot(self) -> FleetSnapshot:
        return self._residency.snapshot(self._clock())

    def outlook(self, model: str, *, node: str | None = None, options: LoadOptions = UNSAID) -> Outlook:
        """Where `load` would put it, who would leave, and what each node could do; nothing is begun. Raises InvalidBody."""
        for param, names in (("node", (node,) if node else ()), ("hosts", options.hosts)):
            for name in names:
                if name not in self._residency.hosts:
                    known = ", ".join(self._residency.hosts)
                    raise errors.InvalidBody(f"There is no node {name!r}; there are {known}.", param=param)
        return self._residency.outlook(model, node, options, self._clock())

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
        """Hand an event to the owner of residency and carry out what follows from it, an event that follows included."""
        self._inbox.append(event)
        if self._telling:
            return
        self._telling = True
        try:
            while self._inbox:
                self._take(self._inbox.popleft())
        finally:
            self._telling = False

    def _take(self, event: m.Event) -> None:
        if self._closing and not isinstance(event, m.Returned):
            return
        try:
            self._residency.handle(event, self._clock())
        finally:  # what was decided before a fault of ours is done all the same: somebody waits for it
            for effect in self._residency.decided:
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
        except BaseException:
            self._give_up(event.ticket, pending)
            raise
        finally:
            del self._pending[event.ticket]

    def _give_up(self, ticket: int, pending: Pending) -> None:
        """The caller was refused or cancelled, perhaps in the very moment in which it was granted."""
        done = pending.done
        granted = done.result() if done.done() and not done.cancelled() and not done.exception() else None
        if granted is not None:
            self.tell(_unused(granted))
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
            case m.Lost():
                self._listen_once_more(effect.node)
            case m.Joined():
                self._shown.update(shown([effect.neuron]))
                self._watch(effect.neuron.name, effect.neuron.endpoint)
            case m.Parted():
                self._unwatch(effect.node)
            case m.Evicted():
                self._metrics.observe_eviction(effect.model, effect.node)
            case _:
                assert_never(effect)

    def _listen_once_more(self, node: str) -> None:
        """Cut the leases of a node that is silent, one look's time from now, where nothing of an answer comes meanwhile."""
        heard = {lease: lease.heard() for lease in self._leases if lease.node == node}
        seconds = self._config.gateway.look_timeout_secs
        asyncio.get_running_loop().call_later(seconds, self._cut_silent, node, heard)

    def _cut_silent(self, node: str, heard: dict[Lease, int]) -> None:
        host = self._residency.hosts.get(node)
        if host and host.silences:
            for lease in self._leases & heard.keys():
                if lease.heard() == heard[lease]:
                    lease.cut()

    def _answer(self, effect: m.Grant | m.Complete | m.Refuse | m.Report) -> None:
        pending = self._pending.get(effect.ticket)
        if pending is None or pending.done.done():
            if isinstance(effect, m.Grant):
                self.tell(_unused(effect))
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
            case _:
                assert_never(effect)

    def _begin(self, node: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._work[node] = asyncio.create_task(work, name=f"work on {node}")
        task.add_done_callback(partial(self._ended, node))  # which is told even of a task that was cancelled unbegun

    def _ended(self, node: str, task: "asyncio.Task[None]") -> None:
        """Every end of a load or unload is told, for its node does nothing else before."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not isinstance(failure, errors.CortexError):
            log.critical("%s has failed", task.get_name(), exc_info=failure)
        self.tell(m.Finished(node=node, error=_outcome(node, failure, gave_up=task.cancelled())))

    async def _load(self, effect: m.StartLoad) -> None:
        seconds = self._config.gateway.load_timeout_secs
        client = self._watchers[effect.node].client
        try:
            async with asyncio.timeout(seconds):
                loaded = await client.load(
                    effect.spec,
                    timeout_secs=seconds,
                    report=lambda status: self.tell(m.Progressed(node=effect.node, status=status)),
                )
        except TimeoutError:
            message = f"{effect.spec.model_id} was not loaded on {effect.node} within {seconds:.0f} s."
            raise errors.LoadFailed(message, kind="load_timeout") from None
        if not loaded:
            self.tell(m.Found(node=effect.node, model=effect.spec.model_id))

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


def _unused(granted: m.Grant) -> m.Returned:
    """Nobody waits for it any more."""
    return m.Returned(node=granted.node, model=granted.model, trial=granted.trial)


def _outcome(node: str, failure: BaseException | None, *, gave_up: bool) -> errors.Unavailable | None:
    """How a load or unload ended, as a client may be told."""
    match failure:
        case None:
            return errors.LoadFailed(f"{node} has gone away.", kind="node_failed") if gave_up else None
        case errors.Unavailable():
            return failure
        case errors.CortexError():
            return errors.LoadFailed(failure.message, kind="node_failed")
        case _:
            return errors.LoadFailed("The gateway failed.", kind="gateway_failed")


def _begun(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is heard of, though nobody awaits it before the end."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_failure)
    return task


def _tell_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.critical("%s has failed", task.get_name(), exc_info=error)
