"""What the owner of residency is told, and what it has done: events in, effects out. Records only."""

from collections.abc import Mapping

from attrs import frozen

from cortex_gateway.config import EvictionConfig, Neuron
from cortex_gateway.context import RequestContext
from cortex_gateway.errors import CortexError
from cortex_gateway.placement.load_options import UNSAID, LoadOptions
from cortex_gateway.placement.snapshot import Device, Group, LoadStatus, ModelConfig, Replica


@frozen(kw_only=True)
class Observation:
    """One look at a node that answered. Seconds."""

    hostname: str | None = None
    harnesses: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()
    replicas: tuple[Replica, ...] = ()
    groups: tuple[Group, ...] = ()
    uptime_secs: float = 0.0


@frozen(kw_only=True)
class LoadSpec(LoadOptions):
    """What a node is asked to load: the ModelSpec of docs/wire.md. None = absent there.

    `hosts` are the nodes that may lend it devices, the preferred first, by their names in the node's [[peers]].
    """

    model_id: str
    source: str | None = None
    harness: str = "jax"
    quant: str = "auto"
    tensor_parallel: int = 1
    devices: tuple[int, ...] = ()  # empty = the node chooses


@frozen(kw_only=True)
class Looking:
    """A look at the node begins: what it says will be as old as now."""

    node: str


@frozen(kw_only=True)
class Seen:
    """The node answered."""

    node: str
    observation: Observation


@frozen(kw_only=True)
class Missed:
    """The node did not answer, or not as agreed. `silent`: nothing came at all, not even a refusal."""

    node: str
    reason: str
    silent: bool = False


@frozen(kw_only=True)
class Listed:
    """Whom a name server names for the service now: all of them."""

    service: str
    neurons: tuple[Neuron, ...]


@frozen(kw_only=True)
class Suspected:
    """A request could not reach the node: send no other there until it answers a look."""

    node: str
    reason: str


@frozen(kw_only=True)
class Wanted:
    """A request wants a replica of the model.

    `besides`: nodes that have failed it already. Then it is one that serves now on another node, or none.
    """

    ticket: int
    model: str
    context: RequestContext
    besides: frozenset[str] = frozenset()


@frozen(kw_only=True)
class LoadAsked:
    """An operator wants the model loaded, on `node` or wherever it fits."""

    ticket: int
    model: str
    node: str | None = None
    options: LoadOptions = UNSAID
    reload: bool = False  # what is loaded leaves first, once its requests have ended


@frozen(kw_only=True)
class UnloadAsked:
    """An operator wants the model gone, from `node` or from all."""

    ticket: int
    model: str
    node: str | None = None


@frozen(kw_only=True)
class Left:
    """Nobody waits for this ticket any more."""

    ticket: int


@frozen(kw_only=True)
class Begun:
    """The request that tries a replica after its rest is being answered."""

    node: str
    model: str


@frozen(kw_only=True)
class Absent:
    """The node says that it has not loaded the model, whatever it said when it was last looked at."""

    node: str
    model: str


@frozen(kw_only=True)
class Returned:
    """A request that had been granted the replica has ended. `served` None = which says nothing of the replica.

    `sent`: when it was granted, seconds. `failure`: in words, where `served` is false.
    """

    node: str
    model: str
    served: bool | None = None
    failure: str = ""
    sent: float = 0.0
    trial: bool = False


@frozen(kw_only=True)
class Progressed:
    """The load under way on the node got on."""

    node: str
    status: LoadStatus


@frozen(kw_only=True)
class Found:
    """The load under way found the model loaded: somebody else had it loaded since the last look."""

    node: str
    model: str


@frozen(kw_only=True)
class Finished:
    """The load or unload under way on the node has ended."""

    node: str
    error: CortexError | None = None


@frozen(kw_only=True)
class Configured:
    """The operator's files say otherwise now."""

    models: tuple[ModelConfig, ...]
    aliases: Mapping[str, str]
    eviction: EvictionConfig


@frozen
class Ticked:
    """Time has passed."""


Event = (
    Looking
    | Seen
    | Missed
    | Listed
    | Suspected
    | Wanted
    | LoadAsked
    | UnloadAsked
    | Left
    | Begun
    | Absent
    | Returned
    | Progressed
    | Found
    | Finished
    | Configured
    | Ticked
)


OfNode = Looking | Seen | Missed | Suspected | Begun | Absent | Returned | Progressed | Found | Finished
"""What is told of a node that was one when it began; it may have parted since."""


@frozen(kw_only=True)
class Grant:
    """The request may be sent there; it is counted in flight from now. `cold`: it had to wait for a load.

    `trial`: it tries a replica that has had a rest.
    """

    ticket: int
    node: str
    model: str
    cold: bool
    trial: bool = False


@frozen(kw_only=True)
class Complete:
    """What the operator asked for has happened."""

    ticket: int


@frozen(kw_only=True)
class Refuse:
    """The ticket ends with this error."""

    ticket: int
    error: CortexError


@frozen(kw_only=True)
class Report:
    """How far the load is that this operator waits for."""

    ticket: int
    status: LoadStatus


@frozen(kw_only=True)
class StartLoad:
    node: str
    spec: LoadSpec


@frozen(kw_only=True)
class StartUnload:
    node: str
    model: str


@frozen(kw_only=True)
class Abort:
    """Give up on the load or unload under way: the node is gone."""

    node: str


@frozen(kw_only=True)
class Look:
    """Look at the node at once."""

    node: str


@frozen(kw_only=True)
class Lost:
    """The node has been silent for so long that no answer is to be expected of it."""

    node: str


@frozen(kw_only=True)
class Joined:
    """A node is one of the fleet from now on: watch it."""

    neuron: Neuron


@frozen(kw_only=True)
class Parted:
    """The node is none of the fleet any more."""

    node: str


@frozen(kw_only=True)
class Evicted:
    """A model has made room for another."""

    node: str
    model: str
    incoming: str


Effect = Grant | Complete | Refuse | Report | StartLoad | StartUnload | Abort | Look | Lost | Joined | Parted | Evicted
