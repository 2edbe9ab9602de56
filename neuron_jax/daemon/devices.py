"""This host's devices: what they are, how full, which are lost, and who was granted what; must not know models' insides.

The one owner of grants (`shares` is their arithmetic), of who is short of memory, and of what is known to be lost.
Everything but a look at the devices runs in the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

import attrs
from attrs import frozen

from neuron_jax.daemon.news import News
from neuron_jax.daemon.returning import Leaving, last_seen, missing
from neuron_jax.daemon.shares import (
    DeviceMemory,
    MemoryGrant,
    MemoryRequest,
    Picture,
    Shortage,
    grant,
    shortage,
    waits,
)
from neuron_jax.errors import LoadError
from neuron_jax.hardware.cpu import MIB, read_private
from neuron_jax.hardware.records import DeviceLoad, Hardware, Process
from neuron_jax.workers.process import CUDA_SHARE

STALE_SECONDS = 1.0
WATCH_SECONDS = 1.0
"""Between two looks while there are engines."""
FLOOR_MB = {"cuda": 256, "cpu": 128}
"""Kept free on each device where the configuration does not say how much."""

_log = logging.getLogger("neuron.devices")


@frozen
class ReturnPatience:
    """How long memory of an engine that has ended is waited for, in seconds. Drivers take one or two, a kernel as long for
    some GiB. Where nothing comes back for `still`, the rest is other programs': a kernel frees without a pause."""

    most: float = 10.0
    still_cuda: float = 3.0
    still_cpu: float = 1.0
    poll: float = 0.1


PATIENCE = ReturnPatience()


class DeviceSampling(Protocol):
    """Looks at the devices now; `neuron_jax.hardware.discover.Sampler` does."""

    def sample(self) -> Sequence[DeviceLoad]: ...


@frozen
class LostDevice:
    """Why a device is not used any more. `seen`: the driver said so too, so that it can say that all is well again."""

    reason: str
    seen: bool


@frozen
class _Gone:
    """An engine that has ended, until its memory is back. `least` was missing at `since`, in time.monotonic()."""

    leaving: Leaving
    until: float
    least: int
    since: float


class Devices:
    """The hardware as found at start, and a picture of its load that is at most a second old."""

    def __init__(self, hardware: Hardware, sampler: DeviceSampling, patience: ReturnPatience = PATIENCE) -> None:
        self.hardware = hardware
        self._patience = patience
        self.floor_mb = 0
        self._sampler = sampler
        self._loads: tuple[DeviceLoad, ...] = ()
        self._taken = float("-inf")
        self._lost: Mapping[int, LostDevice] = {}
        self._grants: dict[str, MemoryGrant] = {}
        self._short: Mapping[str, Shortage] = {}
        self._seen: dict[str, Leaving] = {}
        self._gone: dict[str, _Gone] = {}
        self._closing = False
        self._news = News()

    @property
    def platform(self) -> Literal["cpu", "cuda"]:
        """What engines run on here."""
        return "cuda" if any(device.kind == "cuda" for device in self.hardware.devices) else "cpu"

    @property
    def loads(self) -> tuple[DeviceLoad, ...]:
        """The last picture."""
        return self._loads

    @property
    def lost(self) -> Mapping[int, str]:
        """The devices that are not used any more, and why."""
        return {index: lost.reason for index, lost in self._lost.items()}

    @property
    def grants(self) -> Mapping[str, MemoryGrant]:
        """What engines were granted, by holder."""
        return self._grants

    def keep_free(self, min_free_mb: int) -> None:
        """MiB that are granted to nobody; -1 = FLOOR_MB."""
        self.floor_mb = FLOOR_MB[self.platform] if min_free_mb < 0 else min_free_mb

    async def look(self, *, fresh: bool = False) -> tuple[DeviceLoad, ...]:
        """A picture that is not stale, or is `fresh`; NVML may take some milliseconds, so a thread asks it."""
        if fresh or time.monotonic() - self._taken > STALE_SECONDS:
            pids = [pid for one in self._grants.values() for pid in one.pids]
            self._loads = await asyncio.to_thread(self._sample, pids)
            self._taken = time.monotonic()
            self._lost = lost_after(self._lost, self._loads)
            self._remember()
        return self._loads

    async def watch(self) -> None:
        """Sees whether engines still have the memory that they were granted, until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._grants:
                continue
            try:
                await self.look()
            except OSError as error:  # of one look
                _log.warning("the devices could not be looked at: %s", error)
                continue
            self.judge()

    def judge(self) -> None:
        """Says of every engine whether it can take new work, by the last picture."""
        picture, before = self.picture(), self._short
        found = {holder: shortage(given, picture, before.get(holder)) for holder, given in self._grants.items()}
        self._short = {holder: short for holder, short in found.items() if short is not None}
        for holder in self._short.keys() - before.keys():
            _log.warning("%s is short: %s", holder, self._short[holder])
        for holder in (before.keys() & self._grants.keys()) - self._short.keys():
            _log.warning("%s is well", holder)

    def shortage(self, holder: str) -> Shortage | None:
        """Set when the engine has not the memory to begin anything new."""
        return self._short.get(holder)

    def picture(self) -> Picture:
        """The last picture, in the words of `shares`."""
        totals = {device.index: device.vram_total_mb for device in self.hardware.devices}
        cuda = self.platform == "cuda"
        return Picture(
            {
                load.index: DeviceMemory(totals[load.index], load.vram_free_mb)
                for load in self._loads
                if load.lost is None
            },
            {(load.index, one.pid): one.used_mb for load in self._loads for one in load.processes},
            self.floor_mb,
            shared=not cuda,
            usable=CUDA_SHARE if cuda else 1.0,
        )

    async def place(self, request: MemoryRequest) -> MemoryGrant:
        """Grants an engine its share, after those that still decide what they leave, and out of what those that have ended
        give back. Raises LoadError."""
        while True:
            await self.look(fresh=True)
            if waits(request, self.picture(), self._grants.values()):
                await self._news.wait()
                continue
            lost = [index for index in request.devices if index not in self.picture().memories]
            if lost:
                raise LoadError("device_lost", f"devices {lost} do not answer any more")
            given = self._granted(request)
            if given is not None:
                self._grants[request.holder] = given
                return given
            await asyncio.sleep(self._patience.poll)

    async def returned(self, holder: str) -> None:
        """Returns when the memory of an engine that has ended is free again, or will not be."""
        while self._still_missing(holder):
            await asyncio.sleep(self._patience.poll)
            await self.look(fresh=True)

    def close(self) -> None:
        """The neuron ends: nobody will use what comes back, so nobody waits for it."""
        self._closing = True
        self._gone.clear()

    def fraction(self, devices: Sequence[int], mb: int) -> float:
        """Which part of the smallest of `devices` `mb` is, for an allocator that wants it so; all of it where `mb` is 0."""
        totals = [one.vram_total_mb for one in self.hardware.devices if one.index in devices]
        return min(1.0, mb / min(totals)) if mb else CUDA_SHARE

    def settle(self, holder: str, pids: Sequence[int], planned_mb: int) -> MemoryGrant:
        """The engine serves. Of all there was it keeps what it planned on each device; a share it asked for it keeps whole."""
        given = self._grants[holder]
        mb = given.mb if given.settled or not planned_mb else min(given.mb, planned_mb)
        settled = attrs.evolve(given, mb=mb, settled=True, pids=tuple(pids), planned=planned_mb)
        self._put(holder, settled)
        return settled

    def put_back(self, holder: str, before: MemoryGrant | None) -> None:
        """The start failed: what the engine was granted before it is its own again."""
        self._put(holder, before)
        self.ended(holder)

    def ended(self, holder: str) -> None:
        """The process is gone; its grant waits for the next one."""
        if holder in self._grants:
            self._mourn(self._grants[holder])
            self._put(holder, attrs.evolve(self._grants[holder], pids=()))

    def release(self, holder: str) -> None:
        """There will be no other process: the grant returns."""
        if holder in self._grants:
            self._mourn(self._grants[holder])
        self._put(holder, None)

    def lose(self, devices: Sequence[int], reason: str) -> None:
        """An engine said that a device is lost; where the driver knows which of several, the others are not."""
        seen = {load.index for load in self._loads if load.lost is not None}
        blamed = [index for index in devices if index in seen] or list(devices)
        self._lost = {**self._lost, **{index: LostDevice(reason, index in seen) for index in blamed}}
        _log.error("devices %s are lost: %s", blamed, reason)

    def _granted(self, request: MemoryRequest) -> MemoryGrant | None:
        """What `request` gets; None while more of it is coming back. Raises LoadError."""
        coming = [one for one in tuple(self._gone) if self._still_missing(one) and self._is_near(request, one)]
        try:
            given = grant(request, self.picture(), self._grants.values())
        except LoadError:
            if not coming:
                raise
            return None
        return None if coming and not request.mb else given  # of all there is it would get too little

    def _is_near(self, request: MemoryRequest, holder: str) -> bool:
        return self.platform == "cpu" or bool(set(request.devices) & set(self._gone[holder].leaving.used))

    def _remember(self) -> None:
        """What each engine is seen to use: when it has ended it is too late to ask."""
        picture, grants = self.picture(), self._grants.values()
        seen = {one.holder: last_seen(one, picture, grants) for one in grants if one.pids}
        self._seen = {**self._seen, **{holder: leaving for holder, leaving in seen.items() if leaving.measured}}

    def _mourn(self, given: MemoryGrant) -> None:
        """The engine of `given` is gone, if there was one: its memory is awaited from now on."""
        seen = self._seen.pop(given.holder, None)
        if not given.pids or not self._loads or self._closing:
            return
        now = time.monotonic()
        leaving = seen or last_seen(given, self.picture(), self._grants.values())
        self._gone[given.holder] = _Gone(leaving, now + self._patience.most, sum(leaving.used.values()), now)

    def _still_missing(self, holder: str) -> bool:
        """Whether some of an engine's memory is still awaited, by the last picture."""
        gone, now = self._gone.get(holder), time.monotonic()
        if gone is None:
            return False
        mb = missing(gone.leaving, self.picture(), self._grants.values())
        if mb < gone.least:
            gone = self._gone[holder] = attrs.evolve(gone, least=mb, since=now)
        still = self._patience.still_cuda if self.platform == "cuda" else self._patience.still_cpu
        if not mb or now >= gone.until or now - gone.since >= still:
            del self._gone[holder]
            if mb:
                _log.warning("%s has ended, and %d MiB of it did not come back", holder, mb)
        return holder in self._gone

    def _put(self, holder: str, given: MemoryGrant | None) -> None:
        self._grants.pop(holder, None)
        if given is not None:
            self._grants[holder] = given
        self._news.tell()

    def _sample(self, pids: Sequence[int]) -> tuple[DeviceLoad, ...]:
        loads = tuple(self._sampler.sample())
        if self.platform == "cuda":
            return loads
        ours = tuple(_private(pids))
        return tuple(attrs.evolve(load, processes=ours) for load in loads)


def lost_after(lost: Mapping[int, LostDevice], loads: Sequence[DeviceLoad]) -> Mapping[int, LostDevice]:
    """What is lost after a look: what the driver calls so, less what it called so before and does not any more."""
    now = {load.index: load.lost for load in loads}
    kept = {index: one for index, one in lost.items() if now.get(index) is not None or not one.seen}
    told = {
        index: LostDevice(kept[index].reason if index in kept else words, seen=True)
        for index, words in now.items()
        if words
    }
    return {**kept, **told}


def _private(pids: Sequence[int]) -> Iterator[Process]:
    for pid in pids:
        used = read_private(pid)
        if used is not None:
            yield Process(pid, used // MIB)
