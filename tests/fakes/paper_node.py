"""A node on paper: what it holds, what a look at it would tell, how a load or unload on it would end. Knows no clock."""

from collections.abc import Mapping

from attrs import define, field

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.placement.snapshot import Device, Group, ModelLoad, Rank, Replica


@define(eq=False)
class Held:
    """A model in memory: MiB on each of its nodes, the one that leads first. `well`: it serves."""

    each_mb: int
    on: tuple["PaperNode", ...]
    well: bool = True


@define(eq=False)
class Work:
    """A load or unload that was begun. `settled`: what it does is done, `told` or not; `error`: how it ended."""

    asked: m.StartLoad | m.StartUnload
    settled: bool = False
    given_up: bool = False
    error: errors.CortexError | None = None


@define(eq=False)
class PaperNode:
    """One device of `total_mb`. `sizes`: MiB on each device of every model that it could load."""

    name: str
    sizes: Mapping[str, int]
    total_mb: int = 10_000
    held: dict[str, Held] = field(factory=dict)
    others: dict[str, int] = field(factory=dict)  # requests that are not the gateway's
    work: Work | None = None
    up: bool = True

    @property
    def free_mb(self) -> int:
        return self.total_mb - sum(one.each_mb for one in self.held.values())

    def take(self, model: str, *more: "PaperNode") -> bool:
        """Load it, together with other nodes; false where one of them has no room."""
        group, each = (self, *more), self.sizes[model]
        if any(model in one.held or one.free_mb < each or not one.up for one in group):
            return False
        held = Held(each, group)
        for one in group:
            one.held[model] = held
        return True

    def lose(self, model: str) -> None:
        """It is gone, on all nodes of its group."""
        for one in self.held[model].on:
            del one.held[model]
            one.others.pop(model, None)

    def crash(self) -> None:
        """Nothing is left of it; groups that it took part in have ended."""
        self.up = False
        for model in list(self.held):
            self.lose(model)

    def leads(self, model: str) -> bool:
        return model in self.held and self.held[model].on[0] is self

    def observation(self, ours: Mapping[str, int]) -> m.Observation:
        """What it tells who looks, `ours` being the gateway's own requests on it."""
        free = self.free_mb
        device = Device(index=0, vram_total_mb=self.total_mb, vram_free_mb=free, vram_used_mb=self.total_mb - free)
        groups = tuple(self._group(model, held) for model, held in self.held.items() if len(held.on) > 1)
        replicas = tuple(self._replica(model, ours.get(model, 0), groups) for model in self.sizes)
        return m.Observation(
            hostname=self.name, harnesses=("jax",), devices=(device,), replicas=replicas, groups=groups
        )

    def _loading(self, model: str) -> bool:
        asked = self.work.asked if self.work and not self.work.settled else None
        return isinstance(asked, m.StartLoad) and asked.spec.model_id == model

    def _replica(self, model: str, ours: int, groups: tuple[Group, ...]) -> Replica:
        if self._loading(model) and not self.leads(model):
            return Replica(model=model, status="loading", devices=(0,))
        if not self.leads(model):
            return Replica(model=model, status="unloaded")
        held = self.held[model]
        group = next((one for one in groups if one.model == model), None)
        return Replica(
            model=model,
            status="loaded" if held.well else "recovering",
            devices=(0,),
            vram_used_mb=held.each_mb * len(held.on),
            group=group,
            load=ModelLoad(in_flight=ours + self.others.get(model, 0)),
        )

    def _group(self, model: str, held: Held) -> Group:
        ranks = tuple(Rank(rank=at, host=one.name, devices=(0,)) for at, one in enumerate(held.on))
        leading = held.on[0] is self
        return Group(
            model=model,
            role="leader" if leading else "member",
            leader=held.on[0].name,
            world=len(ranks),
            tensor_parallel=len(ranks),
            ranks=ranks if leading else tuple(rank for rank in ranks if rank.host == self.name),
        )
