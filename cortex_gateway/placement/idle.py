"""When a model leaves because nobody asks for it. Pure."""

from collections.abc import Callable

from cortex_gateway.placement.snapshot import ModelConfig, Node


def due(node: Node, config: Callable[[str], ModelConfig], *, after_secs: float, now: float) -> tuple[str, ...]:
    """The models that nobody has asked for so long, each for its own `idle_secs`, else `after_secs`; 0 = never.

    Only while the node is healthy and unoccupied. What is pinned there stays, and whoever asks for an adapter asks for the
    model that it is beside. `now` is on the clock of `Replica.last_used`.
    """
    if not node.healthy or node.doubted or node.busy:
        return ()
    used: dict[str, float] = {}
    wanted = set()
    for replica in node.replicas:
        model = replica.beside or replica.model
        used[model] = max(used.get(model, 0.0), replica.last_used)
        if replica.pending:
            wanted.add(model)
    leaving = [one.model for one in node.replicas if one.status == "loaded" and not (one.beside or one.draining)]
    return tuple(
        model
        for model in leaving
        if (after := _after(config(model), node.name, after_secs))
        and model not in wanted
        and now >= used[model] + after
    )


def _after(model: ModelConfig, node: str, otherwise: float) -> float:
    """Seconds; 0 = never."""
    if node in model.pinned_on:
        return 0.0
    return otherwise if model.idle_secs is None else model.idle_secs
