"""Which processes an engine consists of, here and on peers, and their start; must not know requests or other models.

Placed anew at every start: a peer that went away is not asked for again what it cannot give, and one that came back is.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
from attrs import frozen

from neuron_jax.common.addresses import Address
from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.devices import Devices
from neuron_jax.daemon.peers import Offer, Peer, PeerError, peers_of
from neuron_jax.errors import LoadError
from neuron_jax.workers.engine_client import EngineClient, Rank, Report, StartRank, start_here
from neuron_jax.workers.frames import EngineSpec, GroupMember

LOOPBACK = "127.0.0.1"
MEETINGS = 3
log = logging.getLogger("neuron.ranks")


@frozen
class Loan:
    """What one peer lends."""

    peer: Peer
    offer: Offer


class Groups:
    """Starts the engines of one neuron. `command` runs an engine process, `config.environ` is what it inherits."""

    def __init__(self, config: NeuronConfig, devices: Devices, command: Sequence[str]) -> None:
        self._config = config
        self._devices = devices
        self._command = tuple(command)
        self._peers: Mapping[str, Peer] = peers_of(config.peers, config.ranks.secret)

    async def start(self, model: ModelSpec, spec: EngineSpec, report: Report) -> EngineClient:
        """The engine of `spec`, whose devices are this host's part of it. Raises LoadError or EngineDied.

        The ports of a rendezvous are free when they are chosen; if another program was quicker, others are.
        """
        for _ in range(MEETINGS - 1):
            try:
                return await self._start(model, spec, report)
            except LoadError as error:
                if error.kind != "port_taken":
                    raise
                log.warning("%s meets again: %s", model.model_id, error.message)
        return await self._start(model, spec, report)

    async def _start(self, model: ModelSpec, spec: EngineSpec, report: Report) -> EngineClient:
        loans = await self._borrow(model, spec.tensor_parallel - len(spec.devices))
        here = split(spec.devices, model.ranks)
        environ, fraction = self._config.environ, self._devices.fraction(spec.devices, spec.memory_mb)
        others = [start_here(devices, environ, self._command, fraction) for devices in here[1:]]
        for loan in loans:
            others += [self._starter(loan, model, devices) for devices in split(loan.offer.devices, model.ranks)]
        if others:
            # Who is not asked from another host is not to be reached from there.
            host = self._config.ranks.address if loans else LOOPBACK
            spec = msgspec.structs.replace(spec, devices=here[0], group=self._group(host, 1 + len(others)))
        return await EngineClient.start(
            spec, inherited=environ, command=self._command, report=report, others=others, fraction=fraction
        )

    async def _borrow(self, model: ModelSpec, missing: int) -> list[Loan]:
        """Peers that lend `missing` devices between them, asked in the model's order. Raises LoadError."""
        loans: list[Loan] = []
        refusals: list[str] = []
        for name in model.hosts if missing > 0 else ():
            wanted = missing - sum(len(loan.offer.devices) for loan in loans)
            if not wanted:
                break
            peer = self._peer(name)
            try:
                loans.append(Loan(peer, await peer.offer(model, wanted)))
            except PeerError as error:
                refusals.append(str(error))
        found = sum(len(loan.offer.devices) for loan in loans)
        if found < missing:
            lent = [f"{loan.peer.name} lends {len(loan.offer.devices)}" for loan in loans]
            raise LoadError(
                "rendezvous_timeout",
                f"{model.model_id} needs {missing} device(s) of other hosts, and {found} can be had: "
                + "; ".join([*lent, *refusals]),
            )
        return loans

    def _peer(self, name: str) -> Peer:
        if name not in self._peers:
            known = ", ".join(sorted(self._peers)) or "nobody"
            raise LoadError("bad_devices", f"hosts names {name!r}, and [[peers]] knows {known}")
        peer = self._peers[name]
        if not peer.secret:
            raise LoadError(
                "bad_devices", f"hosts names {name!r}, which lends nothing without a secret: none is set here"
            )
        return peer

    def _starter(self, loan: Loan, model: ModelSpec, devices: tuple[int, ...]) -> StartRank:
        return partial(_start_there, loan, model, devices)

    def _group(self, host: str, world: int) -> GroupMember:
        return GroupMember(
            rank=0,
            world=world,
            host=host,
            coordinator=str(Address(host, 0)),
            secret=secrets.token_hex(16),
            deadline=self._config.ranks.deadline_secs,
        )


async def _start_there(loan: Loan, model: ModelSpec, devices: tuple[int, ...], spec: EngineSpec) -> Rank:
    assert spec.group is not None
    place = msgspec.structs.replace(spec.group, host=loan.offer.address)
    return await loan.peer.start(msgspec.structs.replace(spec, devices=devices, group=place), model, devices)


def split(devices: tuple[int, ...], per: str) -> list[tuple[int, ...]]:
    """The devices of each rank on one host: of one for all of them, or of one for each."""
    return [devices] if per == "host" else [(device,) for device in devices]
