"""The routes for answers that were kept: read, listed, cancelled, forgotten. Knows the store, no dialect and no neuron."""

from collections.abc import Awaitable, Callable
from functools import partial

from cortex_gateway.auth import policy
from cortex_gateway.dialects.dialect import Kept, KeptAnswers
from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.errors import InvalidBody
from cortex_gateway.routes.exchange import Exchange, Method, Route
from cortex_gateway.routes.followed import read_along

NOT_FOLLOWED = (
    "Events are known of answers that were asked for with `background` and `stream`, while they are made and for "
    "five minutes after their end: ask without `stream`."
)
Work = Callable[..., Awaitable[None]]


def routes(row: KeptAnswers) -> list[Route]:
    """Asking how an answer does is not a request of its own to a key's limits."""
    one = row.path + "/{id:str}"
    table: list[tuple[Method, str, Work]] = [
        ("GET", one, _get),
        ("DELETE", one, _delete),
        ("GET", f"{one}/input_items", _items),
        ("POST", f"{one}/cancel", _cancel),
    ]
    return [
        Route(method, path, partial(work, row=row), need=policy.INFER, metered=False) for method, path, work in table
    ]


def owner(it: Exchange) -> str:
    """Whose answers are seen: those of the key; without one, those that were asked for without one."""
    return it.context.principal.key or ""


async def _found(it: Exchange, row: KeptAnswers) -> Kept:
    identity = it.path_params["id"]
    found = await it.gateway.answers.get(owner(it), identity) if identity.startswith(row.prefix) else None
    if found is None:
        raise RefusedError(row.missing(identity))
    return found


async def _get(it: Exchange, _: bytes, *, row: KeptAnswers) -> None:
    found = await _found(it, row)
    if it.query.get("stream", "false").lower() in ("false", "0"):
        await it.client.answer(200, found.answer)
        return
    log = it.gateway.followed.find(owner(it), found.id)
    if log is None:
        raise InvalidBody(NOT_FOLLOWED, param="stream")
    await read_along(it.client, log, _first(it.query.get("starting_after")), it.gateway.keep_alive_seconds)


def _first(after: str | None) -> int:
    """The number of the first event that is wanted."""
    if after is None:
        return 0
    if not (after.isascii() and after.isdigit() and len(after) < 10):
        raise InvalidBody("starting_after must be the number of an event.", param="starting_after")
    return int(after) + 1


async def _items(it: Exchange, _: bytes, *, row: KeptAnswers) -> None:
    found = await _found(it, row)
    chain = await it.gateway.answers.chain(owner(it), found.id)
    await it.client.answer(200, row.items(chain or (found,), it.query))


async def _cancel(it: Exchange, _: bytes, *, row: KeptAnswers) -> None:
    """Once it has ended that changes nothing."""
    found = await _found(it, row)
    if row.running(found.answer):
        await it.gateway.live.end(it.context.principal.key, found.id)
        found = await _found(it, row)
    await it.client.answer(200, found.answer)


async def _delete(it: Exchange, _: bytes, *, row: KeptAnswers) -> None:
    found = await _found(it, row)
    await it.gateway.live.end(it.context.principal.key, found.id)
    await it.gateway.answers.forget(owner(it), found.id)
    it.gateway.followed.forget(owner(it), found.id)
    await it.client.answer(200, row.deleted(found.id))
