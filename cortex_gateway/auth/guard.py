"""Asks every request for its key and counts what it uses; the one owner of the keys as they are now. Knows no route."""

import asyncio
import contextlib
import logging
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from attrs import define, field

from cortex_gateway.auth import keys as form
from cortex_gateway.auth import policy
from cortex_gateway.auth.limits import Meter
from cortex_gateway.auth.principal import Key, Principal
from cortex_gateway.auth.store import KeyReader, StoreError

log = logging.getLogger(__name__)
LOOK_SECS = 1.0  # what a command changes counts at most so much later
AsgiScope = Mapping[str, Any]


@define
class AdmittedRequest:
    """A request that was let in."""

    principal: Principal
    _meter: Meter | None
    _clock: Callable[[], float]

    def end(self, tokens: int) -> None:
        """It has ended, however it did, and used so many tokens. Only the first call counts."""
        meter, self._meter = self._meter, None
        if meter:
            meter.leave(self._clock(), tokens)


@define(eq=False)
class Guard:
    """One per gateway, in its event loop. `now` gives seconds since 1970; `clock` seconds that never go back."""

    required: bool = False  # inference needs a key, and /admin does from this host, too
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    _keys: Mapping[str, Key] = field(factory=dict, init=False)
    _meters: dict[str, Meter] = field(factory=dict, init=False)

    @property
    def usable(self) -> int:
        """How many keys would be let in now."""
        now = self.now()
        return sum(key.revoked is None and (key.expires is None or key.expires > now) for key in self._keys.values())

    def know(self, keys: Iterable[Key]) -> None:
        """From now on these are the keys. What was counted of those that stay is kept."""
        self._keys = {key.id: key for key in keys}
        self._meters = {name: meter for name, meter in self._meters.items() if name in self._keys}

    def identify(self, scope: AsgiScope, need: policy.AcceptedScopes, *, asked: bool = False) -> Principal:
        """Who sent it, and that he may. `asked`: nobody passes without a key. Raises Unauthorized, Forbidden."""
        headers = scope["headers"]
        asked = asked or self.required or (need == policy.ADMIN and not _is_local(scope))
        return policy.admit(self._keys, form.offered(headers), need, self.now(), asked=asked)

    def admit(self, scope: AsgiScope, need: policy.AcceptedScopes) -> AdmittedRequest:
        """The same, and his limits where he infers; call the admission's `end`. Raises RateLimited as well."""
        principal = self.identify(scope, need)
        meter = self._meter(principal) if need == policy.INFER else None
        if meter:
            meter.enter(self.clock())
        return AdmittedRequest(principal, meter, self.clock)

    @contextlib.asynccontextmanager
    async def following(self, path: pathlib.Path | None, every: float = LOOK_SECS) -> AsyncIterator[None]:
        """Within the block the keys are those of the database at `path`. Raises StoreError where it is no good at the start.

        Later the keys that were read last stay in force, and the log says what is wrong.
        """
        if path is None:
            yield
            return
        reader = KeyReader(path)
        done = asyncio.Event()
        self.know(reader.changed() or ())
        task = asyncio.create_task(self._follow(reader, done, every), name="keys")
        try:
            yield
        finally:
            done.set()
            await task
            reader.close()

    async def _follow(self, reader: KeyReader, done: asyncio.Event, every: float) -> None:
        trouble = ""
        while not await _within(done, every):
            try:
                keys = await asyncio.to_thread(reader.changed)  # a disk may take its time
            except StoreError as error:
                if str(error) != trouble:
                    log.error("%s", error)  # noqa: TRY400 -- it is the operator's to mend, a trace tells him nothing
                trouble = str(error)
                continue
            trouble = ""
            if keys is not None:
                self.know(keys)

    def _meter(self, principal: Principal) -> Meter | None:
        if principal.key is None:
            return None
        meter = self._meters.get(principal.key)
        if meter is None:
            meter = self._meters[principal.key] = Meter(principal.limits)
        return meter


def _is_local(scope: AsgiScope) -> bool:
    client = scope.get("client")
    return policy.is_local(client[0] if client else None, scope["headers"])


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether it was set in that time."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
