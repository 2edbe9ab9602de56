"""Other weights for the replicas of a loaded model, on one node after the other."""

from collections.abc import Iterable
from typing import Any

from cortex_gateway import errors
from cortex_gateway.fleet.client import NeuronClient


async def swap(
    clients: Iterable[NeuronClient], model: str, *, source: str | None, in_place: bool, timeout_secs: float
) -> dict[str, Any]:
    """By node, which weights serve then. Raises LoadFailed of the first that refuses, which says where they are in place."""
    done: dict[str, Any] = {}
    for client in clients:
        try:
            done[client.name] = await client.reload(model, source=source, in_place=in_place, timeout_secs=timeout_secs)
        except errors.LoadFailed as error:
            already = f" It serves them on {', '.join(done)} already." if done else ""
            raise errors.LoadFailed(f"{client.name}: {error.message}{already}", **error.extras) from error
    return done
