"""Puts the gateway together: fleet and metrics in, one ASGI app out. The only place where routes meet."""

import contextlib
import socket
from collections.abc import AsyncIterator

from litestar import Litestar
from litestar.datastructures import State
from litestar.types import ASGIApp

from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from cortex_gateway.origins import policy_of
from cortex_gateway.routes import admin, health, messages, models, openai
from cortex_gateway.routes.cross_origin import CrossOrigin
from cortex_gateway.routes.gateway import Gateway
from cortex_gateway.routes.plain import refuse
from cortex_gateway.stream import BEAT_SECONDS

HANDLERS = (
    openai.chat_completions,
    openai.completions,
    messages.messages,
    messages.count_tokens,
    models.models,
    models.model,
    health.health,
    admin.fleet,
    admin.load,
    admin.unload,
)


def create_app(
    fleet: Fleet, metrics: Metrics, config: Config, guard: Guard, *, beat_seconds: float = BEAT_SECONDS
) -> ASGIApp:
    """The gateway's API. The fleet starts and closes with the app; which web pages may call it is said in `origins`.

    Every route but the health asks `guard` who it is.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await fleet.start()
        try:
            yield
        finally:
            await fleet.close()

    it = config.gateway
    gateway = Gateway(
        fleet=fleet,
        metrics=metrics,
        guard=guard,
        max_body_bytes=it.max_body_mb << 20,
        body_silence_secs=it.read_timeout_secs,
        beat_seconds=beat_seconds,
    )
    app = Litestar(
        route_handlers=HANDLERS,
        state=State({"gateway": gateway}),
        lifespan=[lifespan],
        exception_handlers={Exception: refuse},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    return CrossOrigin(app, policy_of(it.listen, it.hosts, it.origins, socket.gethostname()))
