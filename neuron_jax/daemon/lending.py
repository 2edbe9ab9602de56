"""Devices of this host that other neurons' models use: offers, and the ranks that run here; must not know who leads them.

Whoever knows the secret of [ranks] may use this host's devices: it is trusted as an operator is. A rank lives as long as
the connection over which it was asked for.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from neuron_jax.common.errors import ConfigError
from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.access import knows
from neuron_jax.daemon.devices import Devices
from neuron_jax.daemon.fields import decode_object
from neuron_jax.daemon.launch import TOTAL_ROW, row_mb
from neuron_jax.daemon.problems import Problem, forbidden, invalid_body, shutting_down
from neuron_jax.daemon.shares import MemoryRequest
from neuron_jax.daemon.wire_common import HEARTBEAT_LINE, sse
from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.process import EngineProcess, engine_environment

BEAT_SECONDS = 0.5
"""How often the borrower hears that its rank is looked after."""

Locate = Callable[[ModelSpec], Awaitable[Path]]
"""The model's files, fetched if need be. Raises LoadError."""
Choose = Callable[[int], Awaitable[tuple[int, ...]]]
"""Up to so many devices of this host, the emptiest first."""
ReadModel = Callable[[Mapping[str, Any], str], ModelSpec]
"""A load request over what is configured for that model. Raises ConfigError."""
_log = logging.getLogger("neuron.ranks")


class RankLender:
    """The one owner of the ranks that were lent. `devices` grants them their share, like any engine's."""

    def __init__(
        self,
        config: NeuronConfig,
        devices: Devices,
        *,
        command: Sequence[str],
        read_model: ReadModel,
        locate: Locate,
        choose: Choose,
    ) -> None:
        self._config = config
        self._devices = devices
        self._command = tuple(command)
        self._read_model = read_model
        self._locate = locate
        self._choose = choose
        self._closing = asyncio.Event()
        self._lent: set[EngineProcess] = set()

    @property
    def lent(self) -> Sequence[EngineProcess]:
        """The ranks that run here for others."""
        return tuple(self._lent)

    def admit(self, authorization: str) -> None:
        """Raises Problem unless the caller knows the secret."""
        secret = self._config.ranks.secret
        if not secret:
            raise forbidden("lends_nothing", "This neuron lends no devices: its configuration has no secret.")
        if not knows(authorization, secret):
            raise forbidden("wrong_secret", "The secret of this neuron's [ranks] is another one.")
        if self._closing.is_set():
            raise shutting_down()

    async def offer(self, body: bytes) -> dict[str, Any]:
        """POST /ranks/offer: devices for a model whose files are here by then, and the address of this host."""
        told = decode_object(body)
        count = told.get("count")
        if type(count) is not int or count < 1:
            raise invalid_body("count", f"count must be a number of devices; found {count!r}.")
        try:
            await self._locate(self._model(told))
            devices = await self._choose(count)
        except LoadError as error:
            raise Problem(422, error.kind, error.message) from error
        return {"address": self._config.ranks.address, "devices": list(devices)}

    async def run(self, body: bytes) -> AsyncGenerator[bytes, None]:
        """POST /ranks: one rank from its start to its end, as events. Whoever stops listening ends it."""
        told = decode_object(body)
        model = self._model(told)
        try:
            path = await self._locate(model)
        except LoadError as error:
            raise Problem(422, error.kind, error.message) from error
        async with self._running(self._spec(told, path), model.memory_mb or self._config.engine.memory_mb) as process:
            yield sse({"event": "started", "pid": process.pid})
            async for line in self._news(process):
                yield line

    async def close(self) -> None:
        """Ends all loans; who borrowed is told why."""
        self._closing.set()
        await asyncio.gather(*(process.close() for process in self._lent))

    @asynccontextmanager
    async def _running(self, spec: EngineSpec, memory_mb: int) -> AsyncGenerator[EngineProcess, None]:
        """The rank's process, in a share of its own: `memory_mb` on each device, or what is left. Raises Problem."""
        holder = _holder(spec)
        try:
            given = await self._devices.place(MemoryRequest(holder, spec.model_id, spec.devices, memory_mb))
        except LoadError as error:
            raise Problem(422, error.kind, error.message) from error
        try:
            mine = msgspec.structs.replace(spec, memory_mb=given.mb)
            env = engine_environment(mine, self._config.environ, self._devices.fraction(mine.devices, given.mb))
            process = await EngineProcess.spawn(mine, self._command, env, lambda _: None)
            self._lent.add(process)
            _log.info("%s runs here on devices %s", process, list(mine.devices))
            try:
                yield process
            finally:
                await process.close()
                self._lent.discard(process)
                _log.info("%s has ended: %s", process, process.died.result())
        finally:
            self._devices.release(holder)
            await self._devices.returned(holder)

    async def _news(self, process: EngineProcess) -> AsyncGenerator[bytes, None]:
        told: set[str] = set()
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            while not process.died.done() and not closing.done():
                for event in _since(process, told):
                    if event["event"] == "ready":
                        self._settle(process)
                    yield sse(event)
                awaited: set[asyncio.Future[Any]] = {process.died, closing}
                awaited |= {future for future in (process.sane, process.ready) if not future.done()}
                done, _ = await asyncio.wait(awaited, timeout=BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    yield HEARTBEAT_LINE
        finally:
            closing.cancel()
        for event in _since(process, told):
            yield sse(event)
        yield sse(_end(process))

    def _settle(self, process: EngineProcess) -> None:
        planned = row_mb(process.ready.result().plan, TOTAL_ROW)
        self._devices.settle(_holder(process.spec), [process.pid], planned)

    def _model(self, told: Mapping[str, Any]) -> ModelSpec:
        model = told.get("model")
        if not isinstance(model, dict):
            raise invalid_body("model", "model must be an object with a model_id.")
        try:
            return self._read_model(model, "the body")
        except ConfigError as error:
            raise invalid_body("model", str(error)) from error

    def _spec(self, told: Mapping[str, Any], path: Path) -> EngineSpec:
        """The borrower's spec with what is this host's own: files, devices, cache."""
        try:
            spec = msgspec.convert(told.get("spec"), EngineSpec)
        except msgspec.ValidationError as error:
            raise invalid_body("spec", f"spec is not one of an engine: {error}") from error
        if spec.group is None or not 0 < spec.group.rank < spec.group.world:
            raise invalid_body("spec", "spec must have a group, and a rank that is not the leader's.")
        if spec.transform:
            raise invalid_body("spec", "spec must have no transform: no other host's code runs here.")
        if spec.platform != self._devices.platform:
            raise Problem(
                422, "bad_devices", f"devices of kind {spec.platform} are wanted; here are {self._devices.platform}."
            )
        return msgspec.structs.replace(spec, path=str(path), compile_cache=str(self._config.cache.compile_dir))


def _holder(spec: EngineSpec) -> str:
    """Who holds the share, in the table that others are shown."""
    assert spec.group is not None
    return f"rank {spec.group.rank} of {spec.model_id}, lent"


def _since(process: EngineProcess, told: set[str]) -> Sequence[dict[str, Any]]:
    """What happened that was not `told` yet, in its order."""
    happened: list[dict[str, Any]] = []
    if process.joined:
        happened.append({"event": "joined"})
    if process.sane.done() and process.sane.exception() is None:
        happened.append({"event": "sane", "value": process.sane.result().value})
    if process.ready.done() and process.ready.exception() is None:
        happened.append({"event": "ready"})
    new = [event for event in happened if event["event"] not in told]
    told.update(event["event"] for event in new)
    return new


def _end(process: EngineProcess) -> dict[str, Any]:
    if not process.died.done():
        return {"event": "died", "kind": "rank_exited", "message": f"the neuron of {process} shuts down"}
    error = process.died.result()
    kind = "rank_exited" if error.kind == "exited" else error.kind
    return {"event": "died", "kind": kind, "message": str(error)}
