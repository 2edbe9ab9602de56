"""How a model that is loaded differs from what an operator asks for. Pure."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from attrs import frozen

from cortex_gateway.fleet.messages import LoadSpec
from cortex_gateway.fleet.ticket import Ticket
from cortex_gateway.placement.load_options import names_of
from cortex_gateway.placement.snapshot import Replica

WHERE_IT_HELPS = -1
"""How many tokens a node guesses ahead of which nobody has said how many."""


@frozen(kw_only=True)
class Loaded:
    """One replica as its node tells of it, as we have loaded it, where we have, and the nodes that lend to it."""

    replica: Replica
    spec: LoadSpec | None
    lenders: Collection[str] = ()


def differing(ticket: Ticket, it: Loaded) -> dict[str, tuple[Any, Any]]:
    """Option -> (what is loaded, what is asked for), of those that the operator named and that are not so."""
    asked = ticket.options.named
    found = {name: (CHECKS[name](value, it), value) for name, value in asked.items()}
    return {name: pair for name, pair in found.items() if pair[0] is not None}


def words(differs: dict[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {_word(loaded)} (asked for: {_word(asked)})" for name, (loaded, asked) in differs.items())


def _word(value: Any) -> str:
    return (
        ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _quant(asked: str, it: Loaded) -> str | None:
    return _format(asked, it.replica.quant, it.spec.quant if it.spec else None, known=it.spec is not None)


def _kv_dtype(asked: str, it: Loaded) -> str | None:
    return _format(asked, it.replica.kv_dtype, it.spec.kv_dtype if it.spec else None, known=it.spec is not None)


def _format(asked: str, has: Mapping[str, Any] | None, told: str | None, *, known: bool) -> str | None:
    """A format is as asked for where it was asked for so, or where the node has chosen it by itself.

    `known`: we have loaded it, and told the node `told`, if anything.
    """
    chosen = (has or {}).get("chosen")
    before = (told or "auto") if known else "auto" if asked == "auto" else None
    return None if asked in (before, chosen) or (before is None and chosen is None) else str(chosen or before)


def _deterministic(asked: bool, it: Loaded) -> bool | None:
    """What is deterministic at no cost, without having been asked to be, is as good as what is not."""
    chosen = (it.replica.deterministic or {}).get("chosen")
    told = it.spec.deterministic if it.spec else None
    has = bool(chosen or told)
    wanted = has if asked else told is True
    return None if wanted == asked else has


def _tensor_parallel(asked: int, it: Loaded) -> int | None:
    has = it.replica.spread or (it.spec.tensor_parallel if it.spec else 0)
    return None if has in (0, asked) or (it.spec and it.spec.tensor_parallel == asked) else has


def _expert_parallel(asked: int, it: Loaded) -> int | None:
    """Of what others loaded it is not known."""
    has = (it.spec.expert_parallel or 1) if it.spec else asked
    return None if has == asked else has


def _max_context(asked: int, it: Loaded) -> int | None:
    """What was asked for may be more than the model has: then what it was given is as asked for."""
    if it.spec and it.spec.max_context == asked:
        return None
    has = it.replica.limit.context if it.replica.limit else None
    return None if has == asked else has


def _speculate(asked: int, it: Loaded) -> int | None:
    """Of what others loaded it is not known."""
    if it.spec is None:
        return None
    has = WHERE_IT_HELPS if it.spec.speculate is None else it.spec.speculate
    return None if has == asked else has


def _hosts(asked: tuple[str, ...], it: Loaded) -> tuple[str, ...] | None:
    """Whoever leads is one of them, else another replica would be asked for."""
    strangers = [name for name in it.lenders if name not in asked]
    return tuple(it.lenders) if strangers else None


def _adapters(asked: tuple[str, ...], it: Loaded) -> tuple[str, ...] | None:
    """Of what others loaded only the names are known."""
    wanted = asked if it.spec else names_of(asked)
    has = it.spec.adapters if it.spec else it.replica.adapters
    return None if wanted == has else it.replica.adapters or ("none",)


def _ranks(asked: str, it: Loaded) -> str | None:
    if it.spec:
        has = it.spec.ranks or "host"
    elif it.replica.group:
        each = len(it.replica.group.ranks) > len(it.replica.group.hosts)
        has = "device" if each else "host"
    else:
        return None
    return None if has == asked else has


CHECKS: dict[str, Callable[[Any, Loaded], Any]] = {
    "quant": _quant,
    "kv_dtype": _kv_dtype,
    "deterministic": _deterministic,
    "tensor_parallel": _tensor_parallel,
    "expert_parallel": _expert_parallel,
    "max_context": _max_context,
    "speculate": _speculate,
    "hosts": _hosts,
    "adapters": _adapters,
    "ranks": _ranks,
}
"""Option -> (what is asked for, what is there) -> what is loaded, None where that is as asked for."""
