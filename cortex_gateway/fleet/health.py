"""What a snapshot of the fleet says to those who only ask; pure."""

from typing import Any

from cortex_gateway.placement.snapshot import FleetSnapshot


def health(snapshot: FleetSnapshot) -> dict[str, Any]:
    """The body of GET /health."""
    healthy = [node for node in snapshot.nodes if node.healthy]
    broken = [
        {
            "node": node.name,
            "model": replica.model,
            "reason": replica.unservable_reason,
            "detail": replica.unservable_detail,
        }
        for node in healthy
        for replica in node.replicas
        if replica.status == "loaded" and not replica.servable
    ]
    status = "degraded" if not healthy else "impaired" if broken else "ok"
    body: dict[str, Any] = {"status": status, "nodes": {"healthy": len(healthy), "total": len(snapshot.nodes)}}
    return {**body, "unservable": broken} if broken else body


def tokenizers(snapshot: FleetSnapshot, model: str) -> list[str]:
    """Base URLs of healthy nodes that list the model, those that have it loaded first: they can count its tokens."""
    found = [(node, one) for node in snapshot.nodes if node.healthy and (one := node.replica(model))]
    return [node.endpoint for node, one in sorted(found, key=lambda item: not item[1].serving)]
