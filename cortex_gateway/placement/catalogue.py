"""What models there are: the operator's list, what every node lists, and the aliases, merged. Pure."""

from collections.abc import Callable, Iterable, Mapping

from attrs import Factory, evolve, field, frozen

from cortex_gateway.placement import fit
from cortex_gateway.placement.load_options import names_of
from cortex_gateway.placement.snapshot import Cost, FleetSnapshot, Limit, ModelConfig, Node, Replica, adapted
from neuron_jax.common.names import nearest as most_alike

LATEST = ":latest"
"""The tag of a name that has none, where clients speak Ollama's API."""


@frozen
class Catalogue:
    """The operator's models and aliases. A model that only a node knows is served with `ModelConfig`'s defaults."""

    models: Mapping[str, ModelConfig] = field(factory=dict)
    aliases: Mapping[str, str] = field(factory=dict)
    bases: Mapping[str, str] = field(init=False, default=Factory(lambda self: _bases(self.models), takes_self=True))
    """The models that the operator's adapters are beside, by the ids of these."""

    def config(self, model: str, replicas: Iterable[Replica] = ()) -> ModelConfig:
        """What is known of `model` before loading it; a node's own harness where the operator said nothing."""
        if model in self.models:
            return self.models[model]
        if model in self.bases:
            return evolve(self.models[self.bases[model]], id=model, adapters=())
        harness = next((replica.harness for replica in replicas), "jax")
        return ModelConfig(id=model, harness=harness)

    def anywhere(self, model: str) -> bool:
        """Any node can be asked to load it: the operator says where its files are, or names it as a hub does."""
        config = self.models.get(model)
        return config is not None and (config.source is not None or "/" in model)


def _bases(models: Mapping[str, ModelConfig]) -> Mapping[str, str]:
    return {adapted(id_, name): id_ for id_, config in models.items() for name in names_of(config.adapters)}


@frozen(kw_only=True)
class Location:
    """Where a model is, or could be from local files."""

    node: str
    status: str
    vram_estimate_mb: int | None = None


@frozen(kw_only=True)
class ModelEntry:
    """One line of /v1/models. `alias_of` is the id behind an alias; `feasible_on` the nodes that could ever hold it."""

    id: str
    alias_of: str | None = None
    loaded: bool = False
    feasible_on: tuple[str, ...] = ()
    locations: tuple[Location, ...] = ()
    capabilities: tuple[str, ...] = ()
    limit: Limit | None = None
    cost: Cost | None = None
    tool_call: bool = False
    reasoning: bool = False


def resolve(catalogue: Catalogue, name: str, listed: Callable[[str], bool]) -> str | None:
    """The id that `name` stands for, or None where neither the operator nor a node (`listed`) knows it.

    Clients of Ollama call a model by its name and a tag: the tag that says nothing is left out where nobody is called so.
    """
    for spelt in dict.fromkeys((name, name.removesuffix(LATEST))):
        target = catalogue.aliases.get(spelt, spelt)
        if target in catalogue.models or target in catalogue.bases or listed(target):
            return target
    return None


def nearest(catalogue: Catalogue, snapshot: FleetSnapshot, name: str) -> tuple[str, ...]:
    """Up to three known names that look most like `name`, in capitals or not."""
    known = {one.casefold(): one for one in names(catalogue, snapshot)}
    return tuple(known[near] for near in most_alike(name.casefold(), known, 3, 0.5))


def present(catalogue: Catalogue, snapshot: FleetSnapshot) -> str | None:
    """An id to ask for: a loaded one, else any known one."""
    loaded = sorted(one.model for node in snapshot.nodes for one in node.replicas if one.status == "loaded")
    return next(iter([*loaded, *sorted(catalogue.models), *names(catalogue, snapshot)]), None)


def names(catalogue: Catalogue, snapshot: FleetSnapshot) -> tuple[str, ...]:
    """Every id and alias, sorted, each once."""
    listed = {replica.model for node in snapshot.nodes for replica in node.replicas if replica.known}
    ids = listed | set(catalogue.models) | set(catalogue.bases)
    aliases = {alias for alias, target in catalogue.aliases.items() if target in ids}
    return tuple(sorted(ids | aliases))


def entries(catalogue: Catalogue, snapshot: FleetSnapshot) -> tuple[ModelEntry, ...]:
    """One entry per id and per alias, sorted by name."""
    return tuple(_entry(catalogue, snapshot, name) for name in names(catalogue, snapshot))


def tightest(limits: Iterable[Limit | None]) -> Limit | None:
    """The smallest number that anybody knows for each field; None where nobody knows any."""
    known = [limit for limit in limits if limit is not None]
    merged = Limit(
        context=_least(limit.context for limit in known),
        input=_least(limit.input for limit in known),
        output=_least(limit.output for limit in known),
    )
    return None if merged == Limit() else merged


def _entry(catalogue: Catalogue, snapshot: FleetSnapshot, name: str) -> ModelEntry:
    model = catalogue.aliases.get(name, name)
    found = [(node, replica) for node in snapshot.nodes if (replica := node.replica(model))]
    replicas = [replica for _, replica in found]
    config = catalogue.config(model, replicas)
    loads = catalogue.bases.get(model, model)
    offering = [node for node in snapshot.nodes if (replica := node.replica(loads)) and replica.known]
    able = snapshot.nodes if catalogue.anywhere(loads) or not offering else offering
    return ModelEntry(
        id=name,
        alias_of=model if model != name else None,
        loaded=any(node.healthy and replica.serving for node, replica in found),
        feasible_on=tuple(node.name for node in able if fit.could_lead(config, node, snapshot.nodes)),
        locations=tuple(_location(node, replica, config) for node, replica in found),
        capabilities=_union([*(replica.capabilities for replica in replicas), config.capabilities]) or ("text",),
        limit=tightest([*(replica.limit for replica in replicas), config.limit]),
        cost=config.cost,
        tool_call=any(replica.tool_call for replica in replicas),
        reasoning=any(replica.reasoning for replica in replicas),
    )


def _location(node: Node, replica: Replica, config: ModelConfig) -> Location:
    known = replica.vram_used_mb or replica.vram_estimate_mb or config.vram_mb
    return Location(node=node.name, status=replica.status, vram_estimate_mb=known)


def _union(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for group in groups for item in group))


def _least(numbers: Iterable[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)
