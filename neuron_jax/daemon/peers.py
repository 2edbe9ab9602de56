"""Other neurons as one that borrows from them sees them: offers, and ranks that run there; knows HTTP, no engines here.

A rank that was borrowed lives as long as the answer to POST /ranks is open: who ends it closes the connection, and whoever
finds the connection silent or closed holds the rank for dead. So nothing has to be remembered, or given back.
"""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any, Self

import httpx
import msgspec
from attrs import field, frozen

from neuron_jax.common.tls import HUNG_UP, client_context, words
from neuron_jax.config import ModelSpec, PeerConfig
from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.frames import EngineSpec, Sane

CONNECT_SECONDS = 5.0
START_SECONDS = 60.0
"""Until a peer has found a share of its devices for a rank, and started it."""
OFFER_SECONDS = 1800.0
"""A peer that has not got the model's files fetches them before it offers anything."""


class PeerError(Exception):
    """The peer does not lend: it is not there, or says why."""


@frozen
class Offer:
    """Devices that a peer would lend, at the address by which other ranks reach it."""

    address: str
    devices: tuple[int, ...]


@frozen
class Peer:
    """One of [[peers]]."""

    config: PeerConfig
    secret: str = field(repr=False)
    tls: ssl.SSLContext | bool = True

    @property
    def name(self) -> str:
        return self.config.name

    async def offer(self, model: ModelSpec, count: int) -> Offer:
        """Up to `count` devices for `model`, whose files are there by then. Raises PeerError."""
        body = {"model": _told(model), "count": count}
        try:
            async with self._client(OFFER_SECONDS) as http:
                answer = await http.post("/ranks/offer", json=body)
        except httpx.HTTPError as error:
            raise PeerError(f"{self.name} at {self.config.endpoint} does not answer: {self.named(error)}") from error
        if answer.status_code != 200:
            raise PeerError(f"{self.name} lends nothing: {_reason(answer.content)}")
        found = answer.json()
        return Offer(found["address"], tuple(found["devices"]))

    async def start(self, spec: EngineSpec, model: ModelSpec, devices: tuple[int, ...]) -> "BorrowedRank":
        """A rank of `spec` there, on `devices`. Raises LoadError."""
        body = {"model": _told(model), "devices": list(devices), "spec": msgspec.to_builtins(spec)}
        return await BorrowedRank.start(self, spec, self._client(START_SECONDS), body)

    def named(self, error: Exception, *, begun: bool = False) -> str:
        """Why it could not be reached, in one line; `begun`: it had answered already."""
        if isinstance(error, httpx.ReadError) and isinstance(self.tls, ssl.SSLContext) and not begun:
            return words(error) or HUNG_UP
        return words(error) or (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)

    def _client(self, patience: float) -> httpx.AsyncClient:
        timeout = httpx.Timeout(patience, connect=CONNECT_SECONDS)
        headers = {"Authorization": f"Bearer {self.secret}"}
        return httpx.AsyncClient(
            base_url=self.config.endpoint, timeout=timeout, headers=headers, verify=self.tls, trust_env=False
        )


class BorrowedRank:
    """`workers.engine_client.Rank` on another host."""

    def __init__(self, peer: Peer, spec: EngineSpec, devices: tuple[int, ...]) -> None:
        loop = asyncio.get_running_loop()
        group = spec.group
        assert group is not None, "a rank has a group"
        self._peer = peer
        self.host = group.host
        self.devices = devices
        self.pid = 0
        self.phase = "init"
        self.died: asyncio.Future[EngineDied] = loop.create_future()
        self.sane: asyncio.Future[Sane] = loop.create_future()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._name = f"rank {group.rank} of {group.world} of {spec.model_id} on {peer.name}"
        self.rank = group.rank
        self._patience = spec.silent_seconds
        self._task: asyncio.Task[None]

    @classmethod
    async def start(cls, peer: Peer, spec: EngineSpec, http: httpx.AsyncClient, body: dict[str, Any]) -> Self:
        """Returns when it runs there. Raises LoadError."""
        rank = cls(peer, spec, tuple(body["devices"]))
        rank._task = asyncio.create_task(rank._live(http, body), name=rank._name)
        try:
            awaited: set[asyncio.Future[Any]] = {rank._begun, rank.died}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await rank.close()
            raise
        if rank.died.done():
            error = rank.died.result()
            raise LoadError("rank_exited" if error.kind == "exited" else error.kind, str(error))
        return rank

    async def close(self) -> None:
        """Ends it, by leaving."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._end(EngineDied(f"{self._name} was given back"))

    async def _live(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        try:
            async with http, http.stream("POST", "/ranks", json=body) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                    self._end(EngineDied(f"{self._name} was refused: {_reason(answer.content)}", "rank_exited"))
                    return
                async for event in _events(answer, self._patience):
                    self._hear(event)
            self._end(EngineDied(f"{self._name} ended, and its neuron did not say of what", "rank_exited"))
        except (httpx.ReadTimeout, TimeoutError):
            self._end(EngineDied(f"{self._name} is out of reach: its neuron says nothing any more", "rank_silent"))
        except httpx.HTTPError as error:
            why = self._peer.named(error, begun=self._begun.done())
            self._end(EngineDied(f"{self._name} is out of reach: {why}", "rank_exited"))

    def _hear(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "started", "pid": int(pid)}:
                self.pid = pid
                self._begun.set_result(None)
            case {"event": "joined"}:
                self.phase = "init_ok"
            case {"event": "sane", "value": int(value)}:
                self.phase = "sane"
                self.sane.set_result(Sane(self.rank, value))
            case {"event": "ready"}:
                self.phase = "ready"
            case {"event": "died", "kind": str(kind), "message": str(message)}:
                self._end(EngineDied(f"{message} (on {self._name.rpartition(' on ')[2]})", kind))

    def _end(self, error: EngineDied) -> None:
        if self.died.done():
            return
        self.phase = "ended"
        self.died.set_result(error)
        if not self.sane.done():
            self.sane.set_exception(error)
            self.sane.exception()  # who waits for it waits for `died` as well


async def _events(answer: httpx.Response, patience: float) -> AsyncIterator[dict[str, Any]]:
    """The JSON of `data:` lines; comments only break the silence. Raises TimeoutError after `patience` seconds of it."""
    lines = answer.aiter_lines()
    while True:
        try:
            async with asyncio.timeout(patience):
                line = await anext(lines)
        except StopAsyncIteration:
            return
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _told(model: ModelSpec) -> dict[str, Any]:
    """What a peer needs to find the files, which it has by the same name or source; and what may be used of its devices."""
    told = {"model_id": model.model_id, "source": model.source, "memory_mb": model.memory_mb}
    return {key: value for key, value in told.items() if value is not None}


def _reason(content: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    return content.decode("utf-8", "replace")[:200] or "it did not say why"


def peers_of(configs: tuple[PeerConfig, ...], secret: str) -> dict[str, Peer]:
    """By name; `secret` is what they are shown who have none of their own."""
    return {config.name: Peer(config, config.secret or secret, _tls(config)) for config in configs}


def _tls(config: PeerConfig) -> ssl.SSLContext | bool:
    """Whom the system trusts, where no file says whom; True, which is httpx's own word, where there is no TLS."""
    if not config.endpoint.startswith("https://"):
        return True
    return client_context(config.tls_ca, config.tls_cert, config.tls_key)
