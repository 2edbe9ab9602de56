"""The engine of one model as asyncio sees it: start, submit, cancel, death; must not know HTTP, text or restarts.

An engine is one process, or a group of ranks: the leader, which is spoken to, and those that follow it, here or on other
hosts. A group is ready when all of its ranks are, and ends as one: with the first of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import msgspec

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers import frames
from neuron_jax.workers.answers import Outputs, TextVectors
from neuron_jax.workers.frames import EngineLoad, EngineSpec, Output, Progress, Ready, Sane, Submit, Vectors
from neuron_jax.workers.process import CUDA_SHARE, DEFAULT_COMMAND, EngineProcess, engine_environment
from neuron_jax.workers.watchdog import Hung

Report = Callable[[Progress], None]
HEARSAY_SECONDS = 1.0
"""How long the group waits for a rank's own last words once another rank says that it is gone."""


class Rank(Protocol):
    """A process of a group that is not its leader, wherever it runs. `phase` is as `EngineProcess` has it."""

    @property
    def died(self) -> "asyncio.Future[EngineDied]": ...

    @property
    def sane(self) -> "asyncio.Future[Sane]": ...

    @property
    def rank(self) -> int: ...

    @property
    def host(self) -> str: ...

    @property
    def pid(self) -> int: ...

    @property
    def devices(self) -> tuple[int, ...]: ...

    @property
    def phase(self) -> str: ...

    async def close(self) -> None: ...


StartRank = Callable[[EngineSpec], Awaitable[Rank]]
"""Starts a rank of the leader's spec, whose group says which it is and where its leader waits for it."""


class EngineClient:
    """One engine. `await EngineClient.start(...)`, `submit`, `await close()`; use it from one event loop."""

    def __init__(self, spec: EngineSpec, report: Report) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.load = EngineLoad()
        self.died: asyncio.Future[EngineDied] = loop.create_future()
        self.others: Sequence[Rank] = ()
        self._leader: EngineProcess
        self._report = report
        self._streams: dict[int, Outputs] = {}
        self._vectors: dict[int, tuple[TextVectors, int]] = {}  # whose they are, and how many are to come
        self._idle = asyncio.Event()
        self._idle.set()
        self._next = 1
        self._told = False  # what tokens stand for
        self._weights: asyncio.Future[frames.WeightsRead | frames.WeightsSwapped] = loop.create_future()
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        spec: EngineSpec,
        *,
        inherited: Mapping[str, str],
        command: Sequence[str] = DEFAULT_COMMAND,
        report: Report = lambda _: None,
        others: Sequence[StartRank] = (),
        fraction: float = CUDA_SHARE,
    ) -> Self:
        """A client whose engine is ready. `others` start the ranks after the first; then `spec` has a group of that size.
        `fraction` of each GPU is its own.

        Raises LoadError with the frame's kind, or EngineDied; leaves no process.
        """
        client = cls(spec, report)
        env = engine_environment(spec, inherited, fraction)
        client._leader = await EngineProcess.spawn(spec, command, env, client._hear)
        try:
            if others:
                await client._gather(others)
            await client._unless_dead(client._leader.ready)
        except BaseException:
            await client.close()
            raise
        client._watch = asyncio.create_task(client._run(), name=f"engine of {spec.model_id}")
        return client

    @property
    def ready(self) -> Ready:
        """What the engine said when it was ready."""
        return self._leader.ready.result()

    @property
    def pid(self) -> int:
        """The process id of the engine, the leader's of a group."""
        return self._leader.pid

    @property
    def pids(self) -> Sequence[int]:
        """Its processes on this host."""
        return [rank.pid for rank in self.ranks if isinstance(rank, EngineProcess)]

    @property
    def ranks(self) -> Sequence[Rank]:
        """All processes, the leader first."""
        return (self._leader, *self.others)

    @property
    def open(self) -> int:
        """Submissions in flight."""
        return len(self._streams) + len(self._vectors)

    def submit(self, *submits: Submit, vocabulary: Callable[[], frames.Vocabulary] | None = None) -> Outputs:
        """Starts `submits` side by side, each under a number of the engine's. Raises EngineDied when it is gone already.

        `vocabulary` must be given where one of them has a constraint.
        """
        if self.died.done():
            raise self.died.result().again()
        if vocabulary is not None and not self._told:
            self._leader.send(vocabulary())
            self._told = True
        requests = range(self._next, self._next + len(submits))
        self._next += len(submits)
        outputs = Outputs(self.forget, requests)
        for request, submit in zip(requests, submits, strict=True):
            self._streams[request] = outputs
            self._idle.clear()
            self._leader.send(msgspec.structs.replace(submit, request=request))
        return outputs

    def embed(self, texts: Sequence[list[int]], seconds: Sequence[int]) -> TextVectors:
        """Starts to make something of `texts`, ids of each, as in `frames.Embed`. Raises EngineDied when it is gone already."""
        if self.died.done():
            raise self.died.result().again()
        assert texts, "nothing to embed"
        request = self._next
        self._next += 1
        vectors = TextVectors(self.forget, request, len(texts))
        self._vectors[request] = (vectors, len(texts))
        self._idle.clear()
        self._leader.send(frames.Embed(request, list(texts), list(seconds) if any(seconds) else []))
        return vectors

    async def read_weights(self, path: str, *, in_place: bool) -> None:
        """Has it read other weights, and hold them ready beside those that serve; see `frames.ReadWeights`.

        Raises LoadError where they do not fit, EngineDied.
        """
        self._leader.send(frames.ReadWeights(path, in_place))
        told = await self._answer()
        if isinstance(told, frames.WeightsRead) and told.kind:
            raise LoadError(told.kind, told.message)

    async def swap_weights(self) -> None:
        """Has it serve with what it read. Raises EngineDied."""
        self._leader.send(frames.SwapWeights())
        await self._answer()

    def drop_weights(self) -> None:
        """Has it forget what it read."""
        self._leader.send(frames.DropWeights())

    async def _answer(self) -> frames.WeightsRead | frames.WeightsSwapped:
        """What it says of other weights; one at a time waits for that."""
        self._weights = asyncio.get_running_loop().create_future()
        awaited: set[asyncio.Future[Any]] = {self._weights, self.died}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if not self._weights.done():
            raise self.died.result().again()
        return self._weights.result()

    def forget(self, request: int) -> None:
        """Cancels a submission, or what it has not answered yet of one."""
        if self._remove(request):
            self._leader.send(frames.Cancel(request))

    async def idle(self) -> None:
        """Returns when no submission is in flight."""
        await self._idle.wait()

    async def close(self) -> None:
        """Ends all processes. Returns when they are reaped."""
        await asyncio.gather(*(rank.close() for rank in self.ranks))
        if self._watch is None:
            self._die(self._leader.died.result())
        else:
            await self._watch

    async def _gather(self, others: Sequence[StartRank]) -> None:
        """Start the other ranks where the leader waits for them, and hold what all observed in the sanity all-reduce
        against their number. Raises LoadError or EngineDied."""
        group = self.spec.group
        assert group is not None, "a group has ranks"
        assert group.world == 1 + len(others), f"{group.world} ranks, and {len(others)} to start beside the first"
        where = (await self._unless_dead(self._leader.listening)).coordinator
        for rank, start in enumerate(others, start=1):
            place = msgspec.structs.replace(group, rank=rank, coordinator=where)
            self.others = (*self.others, await start(msgspec.structs.replace(self.spec, group=place)))
        values = [(await self._unless_dead(rank.sane)).value for rank in self.ranks]
        if any(value != group.world for value in values):
            raise LoadError("sanity_mismatch", _told(values), {"ranks": values})

    async def _unless_dead(self, wanted: "asyncio.Future[frames.T]") -> "frames.T":
        """What `wanted` gives. Raises as it does, or what the first rank died of."""
        awaited: set[asyncio.Future[Any]] = {wanted, *self._deaths()}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        error = await self._first_death()
        raise error if error.kind == "exited" else LoadError(error.kind, str(error))

    async def _run(self) -> None:
        """Waits for the first death, ends the others, and tells everybody who still waits."""
        await asyncio.wait(self._deaths(), return_when=asyncio.FIRST_COMPLETED)
        error = await self._first_death()
        self._leader.end(Hung(error.kind, f"was ended with its group: {error}"))
        await asyncio.gather(*(rank.close() for rank in self.ranks))
        self._die(error)

    def _deaths(self) -> "list[asyncio.Future[EngineDied]]":
        return [rank.died for rank in self.ranks]

    async def _first_death(self) -> EngineDied:
        """Of what the group died. Who only says that another rank is gone is not the first: that one is about to be heard."""
        dead = [rank.died.result() for rank in self.ranks if rank.died.done()]
        if self.others and all(error.kind == "rank_exited" for error in dead):
            await asyncio.wait([death for death in self._deaths() if not death.done()], timeout=HEARSAY_SECONDS)
            dead += [rank.died.result() for rank in self.ranks if rank.died.done()]
        first = next((error for error in dead if error.kind != "rank_exited"), dead[0])
        if not self.others or first.kind != "exited":
            return first
        return EngineDied(str(first), "rank_exited")

    def _hear(self, event: frames.Event) -> None:
        match event:
            case frames.StepOutputs(outputs, load):
                self.load = load
                for output in outputs:
                    self._deliver(output)
            case frames.PromptsRead(prompts):
                for request, computed, cached in prompts:
                    if stream := self._streams.get(request):
                        stream.read = (computed, cached)
            case Vectors():
                self.load = event.load
                self._hand_over(event)
            case frames.LoadReport(load):
                self.load = load
            case frames.WeightsRead() | frames.WeightsSwapped() if not self._weights.done():
                self._weights.set_result(event)
            case Progress():
                self._report(event)

    def _deliver(self, output: Output) -> None:
        stream = self._streams.get(output.request)
        if stream is None:
            return
        if output.finish is not None:
            self._remove(output.request)
        stream.put(output)

    def _hand_over(self, vectors: Vectors) -> None:
        waiting, left = self._vectors.get(vectors.request, (None, 0))
        if waiting is None:
            return
        left -= len(vectors.places)
        if left:
            self._vectors[vectors.request] = (waiting, left)
        else:
            self._remove(vectors.request)
        waiting.put(vectors)

    def _remove(self, request: int) -> bool:
        known = self._streams.pop(request, None) is not None or self._vectors.pop(request, None) is not None
        if not self.open:
            self._idle.set()
        return known

    def _die(self, error: EngineDied) -> None:
        if self.died.done():
            return
        self.died.set_result(error)
        for stream in set(self._streams.values()):
            stream.put(error)
        for vectors, _ in self._vectors.values():
            vectors.put(error)
        self._streams.clear()
        self._vectors.clear()
        self._idle.set()


def start_here(
    devices: tuple[int, ...],
    inherited: Mapping[str, str],
    command: Sequence[str] = DEFAULT_COMMAND,
    fraction: float = CUDA_SHARE,
) -> StartRank:
    """Starts a rank on `devices` of this host, `fraction` of each GPU being its own."""

    async def start(spec: EngineSpec) -> Rank:
        mine = msgspec.structs.replace(spec, devices=devices)
        return await EngineProcess.spawn(mine, command, engine_environment(mine, inherited, fraction), lambda _: None)

    return start


def _told(values: Sequence[int]) -> str:
    seen = ", ".join(f"rank {rank} observed {value}" for rank, value in enumerate(values))
    return f"the sanity all-reduce of {len(values)} ranks, which contribute 1 each, failed: {seen}"
