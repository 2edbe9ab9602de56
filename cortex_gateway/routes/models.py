"""/v1/models and /v1/models/{id}: what can be asked for, for clients of either dialect."""

import datetime as dt
from typing import Any

import attrs

from cortex_gateway.auth import policy
from cortex_gateway.dialects.models_list import Entry, entry, listing
from cortex_gateway.placement.catalogue import ModelEntry
from cortex_gateway.routes.exchange import Exchange, Route

# Nobody knows when a model was made; one fixed moment keeps the answer the same from call to call.
CREATED = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


async def _models(it: Exchange, _: bytes) -> None:
    """Every model and alias that whoever asks may use."""
    fleet = it.gateway.fleet
    ids = policy.allowed(it.context.principal, fleet.resolve)
    entries = [one for one in fleet.catalogue_entries() if ids is None or (one.alias_of or one.id) in ids]
    await it.answer(listing([_render(known) for known in entries]))


async def _model(it: Exchange, _: bytes) -> None:
    """One of them; its id may contain slashes."""
    fleet = it.gateway.fleet
    wanted = str(it.path_params["name"]).removeprefix("/")
    it.check_model(wanted)
    fleet.resolve(wanted)  # raises ModelNotFound with the nearest names
    entries = {known.id: known for known in fleet.catalogue_entries()}
    await it.answer(_render(entries[wanted]))


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
