"""What placement may decide, and what it decides by besides the snapshot. Records only."""

from collections.abc import Collection
from typing import Literal

from attrs import field, frozen

from cortex_gateway.placement import fit
from cortex_gateway.placement.catalogue import Catalogue

Why = Literal["down", "never", "failed", "busy", "full", "doubted"]


@frozen
class Serve:
    """Send it to this node."""

    node: str


@frozen
class Join:
    """It is being loaded there: wait for that load."""

    node: str


@frozen
class Recovering:
    """Its engine is coming back there by itself."""

    node: str


@frozen(kw_only=True)
class Lender:
    """Lends devices to a group, after the victims have left it."""

    node: str
    victims: tuple[str, ...] = ()


@frozen(kw_only=True)
class Placement:
    """Load it there, on these devices (empty = the node's own choice), after the victims have left.

    With `lenders` the node leads a group, which takes devices of them in this order.
    """

    node: str
    devices: tuple[int, ...]
    victims: tuple[str, ...] = ()
    lenders: tuple[Lender, ...] = ()

    @property
    def costs_nothing(self) -> bool:
        """Nobody has to leave for it."""
        return not self.victims and not any(lender.victims for lender in self.lenders)


@frozen
class Hold:
    """Nowhere yet, but what is in the way will pass."""

    reason: str


@frozen
class Reject:
    """Nowhere, and waiting would not help."""

    why: Why
    reason: str


Decision = Serve | Join | Recovering | Placement | Hold | Reject


@frozen(kw_only=True)
class Policy:
    """What decisions depend on besides the snapshot."""

    catalogue: Catalogue = field(factory=Catalogue)
    strategy: Literal["lru", "priority"] = "lru"
    knowledge: fit.Knowledge = field(factory=fit.Knowledge)
    excluded: Collection[str] = field(factory=frozenset)  # nodes where this model has just failed to load
    apart: Collection[frozenset[str]] = field(factory=frozenset)  # hosts that have just failed to serve it together
    sparing: Collection[str] = field(factory=frozenset)  # nodes where others were evicted for this model for nothing
    only: Collection[str] | None = None  # the nodes that the operator named
    offering: Collection[str] | None = None  # the nodes that have the model to load; None = any may be asked
    drain: bool = False  # the wait was long: a model in use may be drained, and leaves when its last request ends


@frozen(kw_only=True)
class Obstacle:
    why: Why
    reason: str
