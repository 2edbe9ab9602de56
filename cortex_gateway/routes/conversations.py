"""The routes for conversations: begun, told, changed, listed, forgotten. Knows the store, no dialect and no neuron."""

import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial

from cortex_gateway.auth import policy
from cortex_gateway.dialects.dialect import AnswerId, Change, Conversations, Kept
from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.routes.exchange import Exchange, Method, Route
from cortex_gateway.routes.kept import owner

Work = Callable[..., Awaitable[None]]


def routes(row: Conversations) -> list[Route]:
    """None of them is a request to a model, which a key's limits count."""
    one = row.path + "/{id:str}"
    item = one + "/items/{item:str}"
    table: list[tuple[Method, str, Work]] = [
        ("POST", row.path, _begin),
        ("GET", one, _get),
        ("POST", one, _describe),
        ("DELETE", one, _delete),
        ("GET", f"{one}/items", _items),
        ("POST", f"{one}/items", _add),
        ("GET", item, _item),
        ("DELETE", item, _remove),
    ]
    return [
        Route(method, path, partial(work, row=row), need=policy.INFER, metered=False) for method, path, work in table
    ]


def _unique(it: Exchange) -> AnswerId:
    return AnswerId(it.context.id, uuid.uuid4().hex, int(time.time()))


def _named(it: Exchange, row: Conversations) -> str:
    name: str = it.path_params["id"]
    if not name.startswith(row.prefix):
        raise RefusedError(row.missing(name))
    return name


async def _found(it: Exchange, row: Conversations) -> Kept:
    name = _named(it, row)
    found = await it.gateway.answers.get(owner(it), name)
    if found is None:
        raise RefusedError(row.missing(name))
    return found


async def _changed(it: Exchange, row: Conversations, change: Change) -> None:
    name = _named(it, row)
    changed = await it.gateway.answers.change(owner(it), name, change.make)
    if changed is None:
        raise RefusedError(row.missing(name))
    await it.client.answer(200, change.told(changed))


async def _begin(it: Exchange, body: bytes, *, row: Conversations) -> None:
    begun = row.begin(body, _unique(it))
    await it.gateway.answers.put(owner(it), begun)
    await it.client.answer(200, begun.answer)


async def _get(it: Exchange, _: bytes, *, row: Conversations) -> None:
    await it.client.answer(200, (await _found(it, row)).answer)


async def _describe(it: Exchange, body: bytes, *, row: Conversations) -> None:
    await _changed(it, row, row.describe(body))


async def _add(it: Exchange, body: bytes, *, row: Conversations) -> None:
    await _changed(it, row, row.add(body, _unique(it)))


async def _remove(it: Exchange, _: bytes, *, row: Conversations) -> None:
    await _changed(it, row, row.remove(it.path_params["item"]))


async def _items(it: Exchange, _: bytes, *, row: Conversations) -> None:
    await it.client.answer(200, row.items(await _found(it, row), it.query))


async def _item(it: Exchange, _: bytes, *, row: Conversations) -> None:
    await it.client.answer(200, row.item(await _found(it, row), it.path_params["item"]))


async def _delete(it: Exchange, _: bytes, *, row: Conversations) -> None:
    """What was answered in it and is kept by itself stays."""
    name = _named(it, row)
    if not await it.gateway.answers.forget(owner(it), name):
        raise RefusedError(row.missing(name))
    await it.client.answer(200, row.deleted(name))
