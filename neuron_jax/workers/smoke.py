"""Whether ranks can work together, and nothing else: meet, join, one all-reduce; must not know models, HTTP or JAX."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from attrs import asdict, frozen

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.frames import EngineSpec, GroupMember
from neuron_jax.workers.process import DEFAULT_COMMAND, EngineProcess, engine_environment

Platform = Literal["cpu", "cuda"]


@frozen
class RankReport:
    """How far one rank came: `phase` init, init_ok or ready; the sum it observed; of what it failed, if it did."""

    rank: int
    phase: str
    value: int | None
    kind: str | None
    message: str | None


@frozen
class SmokeReport:
    """`ok`: every rank that was started here observed the world's size. Seconds."""

    ok: bool
    world: int
    platform: str
    seconds: float
    ranks: tuple[RankReport, ...]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def groups(world: int, deadline: float, secret: str) -> list[GroupMember]:
    """All ranks of a world on this host."""
    return [GroupMember(rank=rank, world=world, secret=secret, deadline=deadline) for rank in range(world)]


async def smoke(
    ranks: Sequence[GroupMember],
    platform: Platform,
    inherited: Mapping[str, str],
    command: Sequence[str] = DEFAULT_COMMAND,
) -> SmokeReport:
    """Start these ranks here, each with a device of its own, and see what they observe. Leaves no process.

    The first of them may be rank 0 with any port; the others are told where it listens.
    """
    began = time.monotonic()
    started: list[EngineProcess] = []
    try:
        for place, group in enumerate(ranks):
            at = group
            if place and group.coordinator.endswith(":0"):
                there = await _rendezvous_address(started[0])
                if there is None:
                    break
                at = msgspec.structs.replace(group, coordinator=there)
            # A CPU has one device for each process, whatever it is called; GPUs are given out in order.
            device = place if platform == "cuda" else 0
            spec = EngineSpec("tp-smoke", "", platform=platform, devices=(device,), tensor_parallel=at.world, group=at)
            started.append(await EngineProcess.spawn(spec, command, engine_environment(spec, inherited), _ignore))
        reports = [await _report(process) for process in started]
    finally:
        await asyncio.gather(*(process.close() for process in started))
    reports += [RankReport(group.rank, "init", None, None, None) for group in ranks[len(reports) :]]
    world = ranks[0].world
    return SmokeReport(
        all(report.value == world for report in reports), world, platform, time.monotonic() - began, tuple(reports)
    )


async def _rendezvous_address(leader: EngineProcess) -> str | None:
    try:
        return (await leader.listening).coordinator
    except EngineDied:
        return None


async def _report(process: EngineProcess) -> RankReport:
    """Waits until the rank has observed something, or ended."""
    group = process.spec.group
    assert group is not None
    await asyncio.wait([process.sane])
    if process.sane.exception() is not None:
        # What it said itself, else how it ended.
        error = process.ready.exception() if process.ready.done() else process.sane.exception()
        kind = error.kind if isinstance(error, LoadError | EngineDied) else "internal"
        phase = "init_ok" if process.joined else "init"
        return RankReport(group.rank, phase, None, kind, str(error))
    value = process.sane.result().value
    if value != group.world:
        words = f"it observed {value}, and {group.world} ranks contribute 1 each"
        return RankReport(group.rank, "init_ok", value, "sanity_mismatch", words)
    return RankReport(group.rank, "ready", value, None, None)


def _ignore(_: object) -> None:
    return None
