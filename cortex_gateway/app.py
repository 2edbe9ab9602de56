"""Puts the gateway together: fleet and metrics in, one ASGI app out. The only place where routes meet."""

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial

import msgspec
from litestar import Litestar
from litestar.datastructures import State
from litestar.types import ASGIApp

from cortex_gateway.answers import Answers, AnswerStore, Bounds
from cortex_gateway.auth import policy
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config
from cortex_gateway.dialects import table
from cortex_gateway.dialects.dialect import (
    Conversations,
    Count,
    Dialect,
    Fixed,
    Generation,
    KeptAnswers,
    Models,
    Row,
    Tokenizing,
)
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from cortex_gateway.openapi.document import document
from cortex_gateway.origins import policy_of
from cortex_gateway.routes import admin, conversations, fixed, health, kept, models
from cortex_gateway.routes.count import count, tokenize
from cortex_gateway.routes.cross_origin import CrossOrigin
from cortex_gateway.routes.exchange import Route
from cortex_gateway.routes.failures import refuse
from cortex_gateway.routes.gateway import Gateway, Reread
from cortex_gateway.routes.generate import generate
from cortex_gateway.stream import KEEP_ALIVE_SECONDS
from neuron_jax.common.release import version_of


def routes(dialects: Sequence[Dialect]) -> list[Route]:
    """The table of all routes: those of each dialect and the gateway's own."""
    spoken = [route for dialect in dialects for row in dialect.routes for route in _routes(row)]
    table = [*spoken, *models.ROUTES, *health.ROUTES, *admin.ROUTES]
    described = msgspec.json.encode(document(table, version_of("cortex-jax") or "0.0.0"))
    return [*table, fixed.route(Fixed("GET", "/openapi.json", described), need=None)]


def _routes(row: Row) -> list[Route]:
    match row:
        case Generation():
            return [Route("POST", row.path, partial(generate, route=row), need=policy.INFER, label=row.label)]
        case Count() | Tokenizing():
            work = partial(count, route=row) if isinstance(row, Count) else partial(tokenize, route=row)
            return [Route("POST", row.path, work, need=policy.INFER)]
        case KeptAnswers():
            return kept.routes(row)
        case Conversations():
            return conversations.routes(row)
        case Models():
            return [models.route(row)]
        case Fixed():
            return [fixed.route(row)]


def create_app(
    fleet: Fleet,
    metrics: Metrics,
    config: Config,
    guard: Guard,
    *,
    dialects: tuple[Dialect, ...] | None = None,
    keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    answers: Answers | None = None,
    reread: Reread | None = None,
) -> ASGIApp:
    """The gateway's API. The fleet starts and closes with the app; which web pages may call it is said in `origins`.

    `dialects`, and `answers`, where they are kept: None = as `config` says. `reread` reads the operator's files again; None =
    there are none.

    Every route but the health asks `guard` who it is.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await fleet.start()
        try:
            yield
        finally:
            await fleet.close()
            await gateway.answers.close()

    it = config.gateway
    dialects = dialects or table.dialects(stabilize_prompts=it.stabilize_prompts)
    bounds = Bounds(keep_secs=config.answers.keep_hours * 3600, max_bytes=config.answers.max_mb << 20)
    gateway = Gateway(
        fleet=fleet,
        metrics=metrics,
        guard=guard,
        max_body_bytes=it.max_body_mb << 20,
        body_silence_secs=it.read_timeout_secs,
        keep_alive_seconds=keep_alive_seconds,
        dialects=dialects,
        reread=reread,
        answers=answers or Answers(AnswerStore(config.answers_path, bounds)),
    )
    app = Litestar(
        route_handlers=[row.handler() for row in routes(dialects)],
        state=State({"gateway": gateway}),
        lifespan=[lifespan],
        exception_handlers={Exception: partial(refuse, dialects=dialects)},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    return CrossOrigin(app, policy_of(it.listen, it.hosts, it.origins, socket.gethostname()), dialects)
