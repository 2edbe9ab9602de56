"""GET /health and the root: whether the fleet can serve; always 200, for whoever asks."""

from typing import Any

from litestar import HttpMethod, Request, Response, route

from cortex_gateway.routes.gateway import Gateway
from cortex_gateway.routes.plain import plain


@route(["/", "/health"], http_method=[HttpMethod.GET, HttpMethod.HEAD])
async def health(request: Request[Any, Any, Any]) -> Response[bytes]:
    """How many nodes are up, and what is loaded but cannot serve."""
    return plain(request, Gateway.of(request.app.state).fleet.health())
