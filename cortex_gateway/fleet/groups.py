"""Who leads what a node lends, and who is to blame when a group fails. Knows hosts, decides no placement. No I/O."""

import urllib.parse
from collections.abc import Iterable

from cortex_gateway.errors import CortexError
from cortex_gateway.fleet.host import Host
from cortex_gateway.placement.snapshot import Group, Membership

TOGETHER = (
    "rendezvous_timeout",
    "sanity_mismatch",
    "rank_mismatch",
    "rank_exited",
    "rank_silent",
    "step_timeout",
)
"""Failures of a group: its hosts do not reach each other, do not agree, or lose one of them. The same hosts are not tried
together again, whoever leads; each of them alone, or with others, is worth another try. Every other failure (port_taken,
device_busy, device_lost, cuda_feature_not_enabled, and all that a model on one host can end with) is the leader's: the same
hosts may serve it when another leads."""


def failed_group(error: CortexError, hosts: Iterable[str]) -> frozenset[str] | None:
    """The hosts that failed together and should not be tried so again; None where the leader by itself is to blame."""
    names = frozenset(hosts)
    return names if len(names) > 1 and error.extras.get("kind") in TOGETHER else None


def leader(group: Group, hosts: Iterable[Host]) -> Host | None:
    """The node of ours that leads it: by its host name, the name that we call it, or its address.

    A member knows but the address at which it meets its leader, which need not be the one that we know: then it is the
    only node that leads that model.
    """
    known = list(hosts)
    leading = [
        host for host in known if any(one.role == "leader" and one.model == group.model for one in host.seen.groups)
    ]
    named = [
        host
        for host in known
        if group.leader in (host.seen.hostname, host.name, urllib.parse.urlsplit(host.endpoint).hostname)
    ]
    # Neurons on one machine share a name: the one that leads is meant.
    for host in (*(one for one in named if one in leading), *named):
        return host
    return leading[0] if len(leading) == 1 else None


def memberships(host: Host, hosts: Iterable[Host]) -> tuple[Membership, ...]:
    """What the node lends, each with what its leader tells of it."""
    others = [one for one in hosts if one is not host]
    return tuple(_membership(group, leader(group, others)) for group in host.lent())


def _membership(group: Group, host: Host | None) -> Membership:
    devices = tuple(sorted({index for rank in group.ranks for index in rank.devices}))
    if host is None:
        return Membership(model=group.model, leader=group.leader, devices=devices)
    said = host.replica(group.model)
    whole = said.vram_used_mb if said else None
    return Membership(
        model=group.model,
        leader=host.name,
        devices=devices,
        leads="yes" if host.healthy and said and said.resident else "no",
        device_mb=whole // said.spread if said and whole and said.spread else None,
        pending=host.pending(group.model),
        last_used=host.last_used.get(group.model, 0.0),
    )
