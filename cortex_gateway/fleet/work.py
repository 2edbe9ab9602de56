"""Loads and unloads under way, one task a node at most; tells how each gets on and how it ended. Decides nothing."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from attrs import define, field

from cortex_gateway import errors
from cortex_gateway.config import GatewayConfig
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.nodes import Nodes

log = logging.getLogger(__name__)


@define(eq=False)
class Jobs:
    """`tell` hands an event to the owner of residency."""

    _gateway: GatewayConfig
    _nodes: Nodes
    _tell: Callable[[m.Progressed | m.Found | m.Finished], None]
    tasks: dict[str, asyncio.Task[None]] = field(factory=dict, init=False)  # by node, the last one of each

    def load(self, effect: m.StartLoad) -> None:
        self._begin(effect.node, self._load(effect))

    def unload(self, effect: m.StartUnload) -> None:
        self._begin(effect.node, self._unload(effect))

    def abort(self, node: str) -> None:
        self.tasks[node].cancel()

    async def close(self) -> None:
        """What is under way goes on in its node."""
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def _begin(self, node: str, work: Coroutine[Any, Any, None]) -> None:
        task = self.tasks[node] = asyncio.create_task(work, name=f"work on {node}")
        task.add_done_callback(partial(self._ended, node))  # which is told even of a task that was cancelled unbegun

    def _ended(self, node: str, task: "asyncio.Task[None]") -> None:
        """Every end of a load or unload is told, for its node does nothing else before."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None and not isinstance(failure, errors.CortexError):
            log.critical("%s has failed", task.get_name(), exc_info=failure)
        self._tell(m.Finished(node=node, error=_outcome(node, failure, gave_up=task.cancelled())))

    async def _load(self, effect: m.StartLoad) -> None:
        seconds = self._gateway.load_timeout_secs
        client = self._nodes.client(effect.node)
        try:
            async with asyncio.timeout(seconds):
                loaded = await client.load(
                    effect.spec,
                    timeout_secs=seconds,
                    report=lambda status: self._tell(m.Progressed(node=effect.node, status=status)),
                )
        except TimeoutError:
            message = f"{effect.spec.model_id} was not loaded on {effect.node} within {seconds:.0f} s."
            raise errors.LoadFailed(message, kind="load_timeout") from None
        if not loaded:
            self._tell(m.Found(node=effect.node, model=effect.spec.model_id))

    async def _unload(self, effect: m.StartUnload) -> None:
        client = self._nodes.client(effect.node)
        await client.unload(effect.model, drain_secs=self._gateway.drain_secs)


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
