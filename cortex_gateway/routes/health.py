"""GET /health and the root: whether the fleet can serve; always 200, for whoever asks."""

from cortex_gateway.routes.exchange import Exchange, Route


async def _health(it: Exchange, _: bytes) -> None:
    """How many nodes are up, and what is loaded but cannot serve."""
    await it.answer(it.gateway.fleet.health())


ROUTES = tuple(Route("GET", path, _health, need=None) for path in ("/", "/health"))
