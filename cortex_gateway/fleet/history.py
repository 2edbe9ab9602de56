"""How loads went and how models were loaded, and what `placement` is asked with because of it. No I/O, no clock of its own."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import define, evolve, field, frozen

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.messages import LoadSpec
from cortex_gateway.fleet.ticket import Ticket
from cortex_gateway.placement import fit
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.decisions import Placement, Policy, Reject
from cortex_gateway.placement.load_options import UNSAID, LoadOptions
from cortex_gateway.placement.snapshot import ModelConfig

COOLING_SECS = 5.0
"""A failed load is not tried again on that node for this long: the Retry-After that clients are given."""
SPARING_SECS = 30.0
"""Where others have left for a load that failed, nobody is asked to leave for that model again for so long."""
PATIENCE_SECS = 10.0
"""After this long a waiting request may have a model in use drained, so that a busy model cannot starve the others."""


@frozen(kw_only=True)
class LoadFailure:
    """A load or unload that ended badly, and when. `alone`: the node is to blame; `apart`: what failed together with it.

    `dear`: others had left for it.
    """

    at: float
    error: errors.CortexError
    dear: bool = False
    alone: bool = True
    apart: frozenset[frozenset[str]] = frozenset()


@define
class LoadHistory:
    """Keys are (model, node)."""

    config: Config
    catalogue: Catalogue = field(init=False)
    failures: dict[str, dict[str, LoadFailure]] = field(factory=dict, init=False)  # model -> node -> the last one
    _knowledge: fit.Knowledge = field(factory=fit.Knowledge, init=False)
    _policies: dict[object, Policy] = field(factory=dict, init=False)  # by all that they depend on besides knowledge
    _loaded_at: dict[tuple[str, str], float] = field(factory=dict, init=False)
    _specs: dict[tuple[str, str], LoadSpec] = field(factory=dict, init=False)  # how it was loaded, to load it again

    def __attrs_post_init__(self) -> None:
        self.configure(self.config)

    def configure(self, config: Config) -> None:
        """Ask placement with this from now on."""
        self.config = config
        self.catalogue = Catalogue({model.id: model for model in config.models}, config.aliases)
        self._policies = {}

    def measure(self, host: Host) -> None:
        """Keep the footprints that the node has just told."""
        told = {
            (model, host.name): replica.vram_used_mb
            for model, replica in host.replicas.items()
            if replica.status == "loaded" and replica.vram_used_mb
        }
        if told.items() - self._knowledge.measured.items():
            self._knowledge = fit.Knowledge(measured={**self._knowledge.measured, **told})
            self._policies = {}

    def loaded(self, spec: LoadSpec, host: Host, now: float) -> None:
        self._specs[spec.model_id, host.name] = spec
        self._loaded_at[spec.model_id, host.name] = now
        self.failures.get(spec.model_id, {}).pop(host.name, None)

    def fail(
        self,
        model: str,
        node: str,
        error: errors.CortexError,
        now: float,
        *,
        together: frozenset[str] | None = None,
        dear: bool = False,
    ) -> None:
        """A load or unload there has ended badly. `together`: the nodes to blame as a group; None = this node by itself."""
        failures = self.failures.setdefault(model, {})
        before = failures.get(node)
        apart = (before.apart if before else frozenset()) | ({together} if together else set())
        failures[node] = LoadFailure(at=now, error=error, dear=dear, alone=together is None, apart=apart)

    def cooling(self, ticket: Ticket, now: float, seconds: float = COOLING_SECS) -> dict[str, LoadFailure]:
        """Nodes where the model has failed: since the operator asked, or too short a while ago for a request."""
        failures = self.failures.get(ticket.loads)
        if not failures:
            return {}
        if ticket.kind == "restore":  # what it left for has failed just then
            return {node: failure for node, failure in failures.items() if failure.at > ticket.since}
        floor = ticket.since if ticket.kind == "load" else min(ticket.since, now - seconds)
        return {node: failure for node, failure in failures.items() if failure.at >= floor}

    def offering(self, ticket: Ticket, hosts: Iterable[Host]) -> frozenset[str] | None:
        """The nodes that have the model to load, up or down. None = any may be asked, by an operator who names one too."""
        if self.catalogue.anywhere(ticket.loads) or ticket.node or ticket.options.hosts:
            return None
        if ticket.model in self.catalogue.bases:
            return frozenset(host.name for host in hosts if host.knows(ticket.loads)) or None
        return frozenset(host.name for host in hosts if host.knows(ticket.model)) or None

    def policy(self, ticket: Ticket, now: float, offering: frozenset[str] | None = None) -> Policy:
        """What placement is asked with for this ticket; the same object as long as it says the same."""
        cooling = self.cooling(ticket, now)
        excluded = frozenset(node for node, failure in cooling.items() if failure.alone)
        apart = frozenset(group for failure in cooling.values() for group in failure.apart)
        recent = self.cooling(ticket, now, SPARING_SECS)
        sparing = frozenset(node for node, failure in recent.items() if failure.dear)
        drain = ticket.kind == "load" or now >= ticket.since + PATIENCE_SECS
        only = ticket.named
        key = (excluded, apart, sparing, only, offering, drain)
        if key not in self._policies:
            self._policies[key] = self._policy(
                excluded=excluded, apart=apart, sparing=sparing, only=only, offering=offering, drain=drain
            )
        return self._policies[key]

    def _policy(self, **more: Any) -> Policy:
        return Policy(
            catalogue=self.catalogue, strategy=self.config.eviction.strategy, knowledge=self._knowledge, **more
        )

    def policy_after(self, model: str, node: str, demanded_mb: int) -> Policy:
        """What placement is asked with once that node has refused the model for want of `demanded_mb` in all."""
        return evolve(
            self._policy(drain=True), knowledge=evolve(self._knowledge, demanded={(model, node): demanded_mb})
        )

    def refusal(self, ticket: Ticket, reject: Reject, now: float, *, grouped: bool = False) -> errors.CortexError:
        """The error that a rejected ticket ends with: the last failure where there was one, for it says most.

        `grouped`: for a model of several hosts, of which it is then told as well what each lacks.
        """
        failures = self.cooling(ticket, now, SPARING_SECS if reject.why == "failed" else COOLING_SECS)
        if failures:
            error = max(failures.values(), key=lambda failure: failure.at).error
            # The group had enough once: what it lacks now is not in the words of the node that is gone.
            return errors.LoadFailed(f"{error.message} {reject.reason}", **error.extras) if grouped else error
        if reject.why in {"full", "never"}:
            return errors.InsufficientVram(reject.reason)
        return errors.NoHealthyNode(reject.reason)

    def model(self, name: str, hosts: Iterable[Host], options: LoadOptions = UNSAID) -> ModelConfig:
        """What is known of a model before it is loaded, as `options` want it otherwise."""
        replicas = () if name in self.catalogue.models else [one for host in hosts if (one := host.replica(name))]
        config = self.catalogue.config(name, replicas)
        return evolve(config, **named) if (named := options.named) else config

    def asked(self, ticket: Ticket, hosts: Iterable[Host]) -> ModelConfig:
        """The model with what the operator who asks for it wants otherwise. A node that is named is one of its hosts."""
        config = self.model(ticket.loads, hosts, ticket.options)
        if not (ticket.node and ticket.options.hosts):
            return config
        return evolve(config, hosts=tuple(dict.fromkeys((ticket.node, *ticket.options.hosts))))

    def loaded_since(self, ticket: Ticket, host: Host) -> bool:
        """It was loaded there after this was asked for."""
        return self._loaded_at.get((ticket.model, host.name), -math.inf) >= ticket.since

    def spec(self, model: str, node: str) -> LoadSpec | None:
        """How we last loaded it there."""
        return self._specs.get((model, node))

    def spec_again(self, host: Host, model: str) -> LoadSpec:
        """How to load what is loaded there: as we loaded it, else on the same devices in the same formats."""
        if (model, host.name) in self._specs:
            return self._specs[model, host.name]
        replica = host.replicas[model]
        place = Placement(node=host.name, devices=replica.devices)
        told = LoadOptions(
            quant=_chosen(replica.quant),
            kv_dtype=_chosen(replica.kv_dtype),
            deterministic=_chosen(replica.deterministic),
            tensor_parallel=len(replica.devices) or None,
        )
        return spec_for(self.model(model, [host], told), place)


def spec_for(model: ModelConfig, place: Placement) -> LoadSpec:
    """What the node is asked for; `model` with what whoever asks wants otherwise."""
    known = {"max_context": model.limit.context if model.limit else None}
    decided = {"tensor_parallel": model.shards, "hosts": tuple(lender.node for lender in place.lenders)}
    return LoadSpec(
        model_id=model.id,
        source=model.source,
        harness=model.harness,
        devices=place.devices,
        **{**known, **model.named, **decided},
    )


def _chosen(told: Mapping[str, Any] | None) -> Any:
    """What a node has chosen, of what it tells of one option."""
    return (told or {}).get("chosen")
