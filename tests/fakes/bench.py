"""Residency on a bench: driven event by event with a clock in the test's hand, its nodes described, its effects recorded."""

from typing import Any

from attrs import define, field

from cortex_gateway import errors
from cortex_gateway.config import Config, Neuron
from cortex_gateway.context import RequestContext
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.residency import Residency
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import Device, Group, ModelConfig, ModelLoad, Replica
from tests.fakes.contexts import asked


@define
class Bench:
    """A Residency with its effects recorded, and nodes that are described, not run."""

    config: Config
    now: float = 100.0
    effects: list[m.Effect] = field(factory=list)
    residency: Residency = field(init=False)
    numbers: int = 0

    def __attrs_post_init__(self) -> None:
        self.residency = Residency(self.config)

    def tell(self, event: m.Event) -> list[m.Effect]:
        new = self.residency.handle(event, self.now)
        self.effects += new
        return new

    def see(
        self,
        node: str = "a",
        *,
        free: int = 10_000,
        total: int = 10_000,
        cards: int = 1,
        replicas: tuple[Replica, ...] = (),
        groups: tuple[Group, ...] = (),
    ) -> list[m.Effect]:
        """The node answers a look; `free` and `total` are those of each of its cards."""
        self.tell(m.Looking(node=node))
        devices = tuple(
            Device(index=index, vram_total_mb=total, vram_free_mb=free, vram_used_mb=total - free)
            for index in range(cards)
        )
        seen = m.Observation(hostname=node, harnesses=("jax",), devices=devices, replicas=replicas, groups=groups)
        return self.tell(m.Seen(node=node, observation=seen))

    def want(self, model: str, context: RequestContext | None = None) -> int:
        self.numbers += 1
        self.tell(m.Wanted(ticket=self.numbers, model=model, context=context or asked(f"r{self.numbers}")))
        return self.numbers

    def load(self, model: str, *, node: str | None = None, reload: bool = False, **options: Any) -> int:
        self.numbers += 1
        asked = m.LoadAsked(ticket=self.numbers, model=model, node=node, reload=reload, options=LoadOptions(**options))
        self.tell(asked)
        return self.numbers

    def unload(self, model: str, **asked: Any) -> int:
        self.numbers += 1
        self.tell(m.UnloadAsked(ticket=self.numbers, model=model, **asked))
        return self.numbers

    def done(self, node: str = "a", error: errors.CortexError | None = None) -> list[m.Effect]:
        return self.tell(m.Finished(node=node, error=error))

    def back(self, node: str, model: str) -> list[m.Effect]:
        return self.tell(m.Returned(node=node, model=model))

    def outcome(self, ticket: int) -> Any:
        """The grant's node, the error of a refusal, "complete", or None while it waits."""
        for effect in self.effects:
            if isinstance(effect, m.Grant) and effect.ticket == ticket:
                return effect.node
            if isinstance(effect, m.Refuse) and effect.ticket == ticket:
                return effect.error
            if isinstance(effect, m.Complete) and effect.ticket == ticket:
                return "complete"
        return None

    def done_to(self, node: str = "a") -> list[str]:
        """The loads and unloads that were begun on the node, in order."""
        said = []
        for effect in self.effects:
            if isinstance(effect, m.StartLoad) and effect.node == node:
                said.append(f"load {effect.spec.model_id}")
            elif isinstance(effect, m.StartUnload) and effect.node == node:
                said.append(f"unload {effect.model}")
        return said


def bench(*models: ModelConfig, nodes: str = "a", aliases: dict[str, str] | None = None, **more: Any) -> Bench:
    return Bench(
        Config(
            neurons=tuple(Neuron(name=name, endpoint=f"http://{name}:1") for name in nodes),
            models=models or (ModelConfig(id="m", vram_mb=6000), ModelConfig(id="n", vram_mb=6000)),
            aliases=aliases or {},
            **more,
        )
    )


def loaded(model: str, *, mb: int = 6000, in_flight: int = 0, **more: Any) -> Replica:
    return Replica(
        model=model, status="loaded", devices=(0,), vram_used_mb=mb, load=ModelLoad(in_flight=in_flight), **more
    )
