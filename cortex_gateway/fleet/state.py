"""What the parts of Residency share: nodes, history, and of the event at hand its time and its effects. Decides nothing."""

from attrs import define, evolve, field

from cortex_gateway.config import Config
from cortex_gateway.fleet import groups
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.history import LoadHistory
from cortex_gateway.fleet.host import Host
from cortex_gateway.placement.snapshot import Node


@define
class FleetState:
    """Of one Residency, whose parts alone write it.

    Attributes:
        now: when the event at hand came, seconds.
        effects: what is to be done because of it, in order.
    """

    config: Config
    hosts: dict[str, Host] = field(init=False)
    history: LoadHistory = field(init=False)
    now: float = field(default=0.0, init=False)
    effects: list[m.Effect] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.hosts = {one.name: Host(name=one.name, endpoint=one.endpoint.rstrip("/")) for one in self.config.neurons}
        self.history = LoadHistory(self.config)

    def configure(self, event: m.Configured) -> None:
        """Go by what the operator's files say now; what is known of nodes and loads stays."""
        self.config = evolve(self.config, models=event.models, aliases=event.aliases, eviction=event.eviction)
        self.history.configure(self.config)

    def node(self, host: Host) -> Node:
        """As placement sees it."""
        return host.node(groups.memberships(host, self.hosts.values()))
