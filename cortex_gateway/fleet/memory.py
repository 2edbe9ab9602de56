"""What the owner of residency remembers between events, and what it asks `placement` with. No I/O, no clock of its own."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from attrs import define, evolve, field, frozen

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet import groups
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.messages import LoadSpec
from cortex_gateway.placement import fit
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.route import Place, Policy, Reject
from cortex_gateway.placement.snapshot import LoadStatus, ModelConfig

COOLING_SECS = 5.0
"""A failed load is not tried again on that node for this long: the Retry-After that clients are given."""
PATIENCE_SECS = 10.0
"""After this long a waiting request may have a model in use drained, so that a busy model cannot starve the others."""
MIB = 1024 * 1024


@define(kw_only=True)
class Ticket:
    """One request or one wish of an operator, from the moment it is told until it is granted, complete or refused."""

    number: int
    kind: Literal["serve", "load", "unload"]
    model: str
    since: float
    node: str | None = None
    quant: str | None = None
    kv_dtype: str | None = None
    deterministic: bool | None = None
    tensor_parallel: int | None = None
    hosts: tuple[str, ...] = ()
    ranks: Literal["host", "device"] | None = None
    request_id: str = ""
    cold: bool = False
    reported: LoadStatus | None = None

    @property
    def wish(self) -> object:
        """Equal for tickets that want the same: requests for one model. Each wish of an operator is one of its own."""
        return self.model if self.kind == "serve" else self.number


@frozen(kw_only=True)
class Failure:
    """A load or unload that ended badly, and when. `alone`: the node is to blame; `apart`: what failed together with it."""

    at: float
    error: errors.CortexError
    alone: bool = True
    apart: frozenset[frozenset[str]] = frozenset()


@define
class Memory:
    """Keys are (model, node)."""

    config: Config
    catalogue: Catalogue = field(init=False)
    failures: dict[str, dict[str, Failure]] = field(factory=dict, init=False)  # model -> node -> the last one
    _knowledge: fit.Knowledge = field(factory=fit.Knowledge, init=False)
    _policies: dict[object, Policy] = field(factory=dict, init=False)  # by all that they depend on besides knowledge
    _specs: dict[tuple[str, str], LoadSpec] = field(factory=dict, init=False)  # how it was loaded, to load it again

    def __attrs_post_init__(self) -> None:
        self.catalogue = Catalogue({model.id: model for model in self.config.models}, self.config.aliases)

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

    def loaded(self, spec: LoadSpec, host: Host) -> None:
        self._specs[spec.model_id, host.name] = spec
        self.failures.get(spec.model_id, {}).pop(host.name, None)

    def fail(self, model: str, hosts: tuple[str, ...], error: errors.CortexError, now: float) -> None:
        """A job for `model` has ended badly. The first of `hosts` led."""
        together = groups.company(error, hosts)
        failures = self.failures.setdefault(model, {})
        before = failures.get(hosts[0])
        apart = (before.apart if before else frozenset()) | ({together} if together else set())
        failures[hosts[0]] = Failure(at=now, error=error, alone=together is None, apart=apart)

    def cooling(self, ticket: Ticket, now: float) -> dict[str, Failure]:
        """Nodes where the model has failed: since the operator asked, or too short a while ago for a request."""
        failures = self.failures.get(ticket.model)
        if not failures:
            return {}
        floor = ticket.since if ticket.kind == "load" else min(ticket.since, now - COOLING_SECS)
        return {node: failure for node, failure in failures.items() if failure.at >= floor}

    def policy(self, ticket: Ticket, now: float) -> Policy:
        """What placement is asked with for this ticket; the same object as long as it says the same."""
        cooling = self.cooling(ticket, now)
        excluded = frozenset(node for node, failure in cooling.items() if failure.alone)
        apart = frozenset(company for failure in cooling.values() for company in failure.apart)
        drain = ticket.kind == "load" or now >= ticket.since + PATIENCE_SECS
        key = (excluded, apart, ticket.node, drain)
        if key not in self._policies:
            self._policies[key] = self._policy(excluded=excluded, apart=apart, only=ticket.node, drain=drain)
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
        failures = self.cooling(ticket, now)
        if failures:
            error = max(failures.values(), key=lambda failure: failure.at).error
            # The group had enough once: what it lacks now is not in the words of the node that is gone.
            return errors.LoadFailed(f"{error.message} {reject.reason}", **error.extras) if grouped else error
        if reject.why in {"full", "never"}:
            return errors.InsufficientVram(reject.reason)
        return errors.NoHealthyNode(reject.reason)

    def model(self, name: str, hosts: Iterable[Host], tensor_parallel: int | None = None) -> ModelConfig:
        """What is known of a model before it is loaded."""
        replicas = () if name in self.catalogue.models else [one for host in hosts if (one := host.replica(name))]
        config = self.catalogue.config(name, replicas)
        return evolve(config, tensor_parallel=tensor_parallel) if tensor_parallel else config

    def asked(self, ticket: Ticket, hosts: Iterable[Host]) -> ModelConfig:
        """The model with what the operator who asks for it wants otherwise. A node that is named is one of its hosts."""
        config = self.model(ticket.model, hosts, ticket.tensor_parallel)
        if not ticket.hosts and not ticket.ranks:
            return config
        named = tuple(dict.fromkeys((*((ticket.node,) if ticket.node else ()), *ticket.hosts)))
        return evolve(config, hosts=named if ticket.hosts else config.hosts, ranks=ticket.ranks or config.ranks)

    def spec_again(self, host: Host, model: str) -> LoadSpec:
        """How to load what is loaded there: as we loaded it, else on the same devices in the same formats."""
        if (model, host.name) in self._specs:
            return self._specs[model, host.name]
        replica = host.replicas[model]
        config = self.model(model, [host], tensor_parallel=len(replica.devices) or None)
        place = Place(node=host.name, devices=replica.devices)
        chosen = ((told or {}).get("chosen") for told in (replica.quant, replica.kv_dtype, replica.deterministic))
        return spec_for(config, place, *chosen)


def spec_for(
    model: ModelConfig,
    place: Place,
    quant: str | None = None,
    kv_dtype: str | None = None,
    deterministic: bool | None = None,
) -> LoadSpec:
    """What the node is asked for."""
    return LoadSpec(
        model_id=model.id,
        source=model.source,
        harness=model.harness,
        quant=quant or model.quant,
        kv_dtype=kv_dtype or model.kv_dtype,
        deterministic=model.deterministic if deterministic is None else deterministic,
        tensor_parallel=model.shards,
        devices=place.devices,
        max_context=model.limit.context if model.limit else None,
        hosts=tuple(lender.node for lender in place.lenders),
        ranks=model.ranks,
    )


def demand(error: errors.CortexError) -> int:
    """MiB that the node says the model takes in all; 0 where it does not say."""
    plan = error.extras.get("plan")
    rows = plan if isinstance(plan, list) else []
    total = sum(row["bytes"] for row in rows if isinstance(row, dict) and isinstance(row.get("bytes"), int))
    required = error.extras.get("required_mb")
    return required if isinstance(required, int) else math.ceil(total / MIB)


def not_loaded(model: str, node: str | None) -> errors.CortexError:
    error = errors.BadRequest(f"The model {model!r} is not loaded on {node or 'any node'}.", param="model")
    error.status, error.code = 404, "model_not_loaded"
    return error
