"""Looks at one node again and again, at once when poked; tells what it saw, decides nothing."""

import asyncio
import logging
from collections.abc import Callable

from attrs import field, frozen

from cortex_gateway.errors import CortexError
from cortex_gateway.fleet.client import LOOK_SECS, NeuronClient
from cortex_gateway.fleet.messages import Looking, Missed, Seen

log = logging.getLogger(__name__)


@frozen(kw_only=True)
class Watcher:
    """One per node, so that a slow node delays nobody but itself. `looked` is set once the first look has ended."""

    client: NeuronClient
    tell: Callable[[Looking | Seen | Missed], None]
    every_secs: float
    within_secs: float = LOOK_SECS
    poked: asyncio.Event = field(factory=asyncio.Event)
    looked: asyncio.Event = field(factory=asyncio.Event)

    async def run(self) -> None:
        """Until cancelled. A fault of ours costs one look, never the watch: else the node would be judged by old news."""
        while True:
            self.poked.clear()
            try:
                self.tell(Looking(node=self.client.name))
                self.tell(await self._look())
            except Exception as error:
                log.exception("looking at the node %s failed", self.client.name)
                self._miss(f"the gateway failed on what it answers: {type(error).__name__}: {error}")
            self.looked.set()
            await self._pause()

    def _miss(self, reason: str) -> None:
        try:
            self.tell(Missed(node=self.client.name, reason=reason))
        except Exception:
            log.exception("the node %s did not answer, and that could not be recorded", self.client.name)

    async def _look(self) -> Seen | Missed:
        try:
            async with asyncio.timeout(self.within_secs):
                return Seen(node=self.client.name, observation=await self.client.observe())
        except TimeoutError:
            reason = f"no answer within {self.within_secs:g} s"
            return Missed(node=self.client.name, reason=reason, silent=True)
        except CortexError as error:
            return Missed(node=self.client.name, reason=error.message)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self.every_secs):
                await self.poked.wait()
        except TimeoutError:
            return
