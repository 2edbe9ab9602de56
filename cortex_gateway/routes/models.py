"""What can be asked for: /v1/models and /v1/models/{id} in two dialects at once, and the routes on which others tell it."""

import datetime as dt
from functools import partial
from typing import Any

import attrs

from cortex_gateway.auth import policy
from cortex_gateway.dialects.dialect import Models
from cortex_gateway.dialects.models_list import Entry, entry, listing
from cortex_gateway.placement.catalogue import LATEST, ModelEntry
from cortex_gateway.routes.exchange import Exchange, Route

# Nobody knows when a model was made; one fixed moment keeps the answer the same from call to call.
CREATED = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def route(row: Models) -> Route:
    """The route of a dialect that tells of them in its own way."""
    return Route(row.method, row.path, partial(_told, row=row), need=policy.EITHER)


async def _told(it: Exchange, body: bytes, *, row: Models) -> None:
    entries = _all(it) if row.wanted is None else [_one(it, row.wanted(body))]
    await it.client.answer(200, row.encode(entries))


async def _models(it: Exchange, _: bytes) -> None:
    await it.answer(listing(_all(it)))


async def _model(it: Exchange, _: bytes) -> None:
    """Its id may contain slashes."""
    await it.answer(_one(it, str(it.path_params["name"]).removeprefix("/")))


def _all(it: Exchange) -> list[Entry]:
    """Every model and alias that whoever asks may use."""
    fleet = it.gateway.fleet
    ids = policy.allowed(it.context.principal, fleet.resolve)
    return [_render(one) for one in fleet.catalogue_entries() if ids is None or (one.alias_of or one.id) in ids]


def _one(it: Exchange, wanted: str) -> Entry:
    """One of them. Raises Forbidden, ModelNotFound with the nearest names."""
    it.check_model(wanted)
    it.gateway.fleet.resolve(wanted)  # by this name or without its tag: one of them has an entry
    entries = {known.id: known for known in it.gateway.fleet.catalogue_entries()}
    return _render(entries.get(wanted) or entries[wanted.removesuffix(LATEST)])


def _render(known: ModelEntry) -> Entry:
    limit = _known(known.limit) if known.limit else {}
    details = {
        "loaded": known.loaded,
        "alias_of": known.alias_of,
        "feasible_on": known.feasible_on,
        "locations": [attrs.asdict(location) for location in known.locations],
        "capabilities": known.capabilities,
        "tool_call": known.tool_call,
        "reasoning": known.reasoning,
        "cost": _known(known.cost) if known.cost else None,
    }
    present = {key: value for key, value in details.items() if value is not None}
    created = int(CREATED.timestamp())
    return entry(known.id, created=created, created_at=CREATED.isoformat(), limit=limit, details=present)


def _known(record: attrs.AttrsInstance) -> dict[str, Any]:
    return {key: value for key, value in attrs.asdict(record).items() if value is not None}


ROUTES = (
    Route("GET", "/v1/models", _models, need=policy.EITHER),
    Route("GET", "/v1/models/{name:path}", _model, need=policy.EITHER),
)
