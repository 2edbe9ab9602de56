"""The routes for answers that were kept: read, listed, cancelled, forgotten. Knows the store, no dialect and no neuron."""

from collections.abc import Awaitable, Callable
from functools import partial

from cortex_gateway.auth import policy
from cortex_gateway.dialects.dialect import Kept, KeptAnswers
from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.errors import InvalidBody
from cortex_gateway.routes.exchange import Exchange, Method, Route

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
    found = await it.gateway.answers.get(owner(it), identity)
    if found is None:
        raise RefusedError(row.missing(identity))
    return found


async def _get(it: Exchange, _: bytes, *, row: KeptAnswers) -> None:
    if it.query.get("stream", "false").lower() not in ("false", "0"):
        raise InvalidBody("An answer that was kept is not streamed: ask without `stream`.", param="stream")
    await it.client.answer(200, (await _found(it, row)).answer)


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
    await it.client.answer(200, row.deleted(found.id))
