"""Who waits for the owner of residency, from the moment it is told until the answer. A record only."""

from typing import Literal

from attrs import Factory, define, field

from cortex_gateway.context import RequestContext
from cortex_gateway.placement.load_options import UNSAID, LoadOptions
from cortex_gateway.placement.snapshot import LoadStatus


@define(kw_only=True)
class Ticket:
    """One request or one command of an operator, from the moment it is told until it is granted, complete or refused.

    `restore` is our own, and nobody is told of it: to have back what left for nothing, if that costs nobody anything.
    """

    number: int
    kind: Literal["serve", "load", "unload", "restore"]
    model: str
    loads: str = field(
        default=Factory(lambda self: self.model, takes_self=True)
    )  # of an adapter the model that it is beside
    since: float
    node: str | None = None
    options: LoadOptions = UNSAID
    reload: bool = False
    reloading: str = ""  # the node where what was loaded leaves for it
    emptied: frozenset[str] = frozenset()  # nodes that it has left already: what is loaded there later stays
    context: RequestContext | None = None  # of a request
    others: int = 0  # nodes that had a replica besides the one to be restored
    cold: bool = False
    reported: LoadStatus | None = None

    @property
    def named(self) -> tuple[str, ...] | None:
        """The nodes that may serve it, or lead where several do; None = any."""
        return (self.node,) if self.node else self.options.hosts or None

    @property
    def affinity(self) -> str | None:
        """The conversation that a request belongs to, if it names one."""
        return self.context.affinity if self.context else None

    @property
    def known(self) -> bool:
        """A request of somebody with a key."""
        return self.context is not None and not self.context.anonymous

    @property
    def line(self) -> object:
        """Equal for tickets that want the same: requests for one model. Each command of an operator is one of its own."""
        return self.model if self.kind == "serve" else self.number
