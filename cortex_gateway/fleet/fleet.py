"""The fleet as the rest of the gateway sees it: carries out what Residency decides. Knows no dialect."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, assert_never

import httpx
from attrs import evolve

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.context import RequestContext
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.callers import Callers, Reporter
from cortex_gateway.fleet.changes import FOLLOWED, Changes, changes
from cortex_gateway.fleet.commands import not_loaded
from cortex_gateway.fleet.discovery import Resolve, services
from cortex_gateway.fleet.health import health, tokenizers
from cortex_gateway.fleet.leases import Lease, Leases
from cortex_gateway.fleet.nodes import Nodes
from cortex_gateway.fleet.residency import Residency
from cortex_gateway.fleet.swap import swap
from cortex_gateway.fleet.work import Jobs
from cortex_gateway.metrics import Metrics
from cortex_gateway.placement import catalogue
from cortex_gateway.placement.catalogue import ModelEntry
from cortex_gateway.placement.load_options import UNSAID, LoadOptions
from cortex_gateway.placement.outlook import Outlook
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus


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
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._residency = Residency(config)
        self._nodes = Nodes(config, transport, resolve, self.tell)
        self._work = Jobs(config.gateway, self._nodes, self.tell)
        self._callers = Callers(self.tell)
        self._leases = Leases(self.tell, self._silent, config.gateway.look_timeout_secs)
        self._alarm: asyncio.TimerHandle | None = None
        self._inbox: deque[m.Event] = deque()
        self._telling = False
        self._closing = False
        metrics.follow(self.snapshot)

    async def start(self) -> None:
        """Begin to watch every node, and wait until each that is known, or named at once, has been looked at."""
        await self._nodes.start({host.name: host.endpoint for host in self._residency.hosts.values()})

    def drain(self) -> None:
        """From now on nobody is granted a replica, and who waits for one is refused; leases run to their end."""
        self._closing = True
        if self._alarm:
            self._alarm.cancel()
        self._callers.close()

    async def close(self) -> None:
        """Drain, stop watching, close every connection. Loads under way go on in their nodes."""
        self.drain()
        await self._work.close()
        await self._nodes.close()

    # -- requests -------------------------------------------------------------------------------------------------

    async def acquire(self, model: str, context: RequestContext) -> Lease:
        """A replica that serves `model` (id or alias), loading it first where it must be.

        Raises ModelNotFound, NoHealthyNode, LoadFailed, ModelRecovering, InsufficientVram, Overloaded, ShuttingDown.
        Cancelling it gives up the place in the queue.
        """
        return await self._lease(m.Wanted(ticket=self._callers.ticket(), model=model, context=context))

    def waits(self, model: str) -> LoadStatus | None:
        """What a request for `model` (id or alias) waits for that has no replica yet; None where nothing is known."""
        return self._residency.waits(self._residency.resolve(model) or model)

    async def another(self, model: str, context: RequestContext, *, besides: Collection[str]) -> Lease | None:
        """A replica that serves `model` now on none of the nodes `besides`, which have failed this request; None = no other.

        Raises ModelNotFound, ShuttingDown.
        """
        event = m.Wanted(ticket=self._callers.ticket(), model=model, context=context, besides=frozenset(besides))
        try:
            return await self._lease(event)
        except errors.NoOtherReplica:
            return None

    async def _lease(self, event: m.Wanted) -> Lease:
        granted = await self._callers.wait(event)
        assert granted is not None, "a request is granted, never merely completed"
        return self._leases.grant(granted, event.model, self._residency.hosts[granted.node].endpoint, self._clock())

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Ask a node; the body of its answer is not read yet. Raises httpx.TransportError."""
        return await self._nodes.send(request)

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
            ticket=self._callers.ticket(),
            model=model,
            node=node,
            options=options,
            reload=reload,
        )
        await self._callers.wait(asked, report)

    async def unload(self, model: str, *, node: str | None = None) -> None:
        """Unload it from `node` or from everywhere, each once its last request has ended. 404 where it is not loaded."""
        await self._callers.wait(m.UnloadAsked(ticket=self._callers.ticket(), model=model, node=node))

    async def reload(
        self, model: str, *, node: str | None = None, source: str | None = None, in_place: bool = False
    ) -> dict[str, Any]:
        """Other weights for the replicas of a model, on `node` or one node after the other; by node which serve then.

        Raises LoadFailed of the first that refuses, which says where they are in place already; 404 where it is not loaded;
        InvalidBody.
        """
        wanted = self.resolve(model)
        self._check("node", [node] if node else [])
        there = [one.name for one in self.snapshot().nodes if (it := one.replica(wanted)) and it.status == "loaded"]
        chosen = [self._nodes.client(name) for name in there if node in (None, name)]
        if not chosen:
            raise not_loaded(wanted, node)
        seconds = self._config.gateway.load_timeout_secs
        return await swap(chosen, wanted, source=source, in_place=in_place, timeout_secs=seconds)

    def configure(self, config: Config) -> Changes:
        """Follow what the operator's files say now, as far as that is possible while requests run. Says what is otherwise."""
        found = changes(self._config, config)
        self._config = evolve(self._config, **{name: getattr(config, name) for name in FOLLOWED})
        self.tell(m.Configured(models=config.models, aliases=config.aliases, eviction=config.eviction))
        return found

    # -- what there is --------------------------------------------------------------------------------------------

    def snapshot(self) -> FleetSnapshot:
        return self._residency.snapshot(self._clock())

    def outlook(self, model: str, *, node: str | None = None, options: LoadOptions = UNSAID) -> Outlook:
        """Where `load` would put it, who would leave, and what each node could do; nothing is begun. Raises InvalidBody."""
        self._check("node", [node] if node else [])
        self._check("hosts", options.hosts)
        return self._residency.outlook(model, node, options, self._clock())

    def _check(self, param: str, names: Collection[str]) -> None:
        """Raises InvalidBody where one is no node."""
        for name in names:
            if name not in self._residency.hosts:
                known = ", ".join(self._residency.hosts)
                raise errors.InvalidBody(f"There is no node {name!r}; there are {known}.", param=param)

    def catalogue_entries(self) -> list[ModelEntry]:
        """Every model and alias, sorted by name."""
        return list(catalogue.entries(self._residency.catalogue, self.snapshot()))

    def health(self) -> dict[str, Any]:
        """The body of GET /health."""
        return health(self.snapshot())

    def locate_tokenizer(self, model: str) -> list[str]:
        """Base URLs of healthy nodes that list the model, those that have it loaded first: they can count its tokens."""
        return tokenizers(self.snapshot(), self._residency.resolve(model) or model)

    def resolve(self, model: str) -> str:
        """The id behind a name. Raises ModelNotFound with the nearest names."""
        resolved = self._residency.resolve(model)
        if resolved is None:
            raise self._residency.unknown(model)
        return resolved

    def look(self) -> None:
        """Look at every node now instead of at the next turn."""
        self._nodes.look()

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

    def _carry_out(self, effect: m.Effect) -> None:
        match effect:
            case m.Grant() | m.Complete() | m.Refuse() | m.Report():
                self._callers.answer(effect)
            case m.StartLoad():
                self._work.load(effect)
            case m.StartUnload():
                self._work.unload(effect)
            case m.Abort():
                self._work.abort(effect.node)
            case m.Look():
                self._nodes.look(effect.node)
            case m.Lost():
                self._leases.listen_once_more(effect.node)
            case m.Joined():
                self._nodes.join(effect.neuron)
            case m.Parted():
                self._nodes.part(effect.node)
            case m.Evicted():
                self._metrics.observe_eviction(effect.model, effect.node)
            case _:
                assert_never(effect)

    def _silent(self, node: str) -> bool:
        host = self._residency.hosts.get(node)
        return host is not None and host.silences > 0

    def _set_alarm(self) -> None:
        """Wake the owner when time alone changes something."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        wake = self._residency.next_wake()
        if wake is not None:
            delay = max(0.0, wake - self._clock())
            self._alarm = asyncio.get_running_loop().call_later(delay, self.tell, m.Ticked())
