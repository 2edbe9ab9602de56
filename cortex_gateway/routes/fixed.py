"""The routes that have one answer for whatever is asked; knows no fleet and no dialect."""

from functools import partial

from cortex_gateway.auth import policy
from cortex_gateway.dialects.dialect import Fixed
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.routes.exchange import Exchange, Route


def route(row: Fixed, need: policy.AcceptedScopes | None = policy.EITHER) -> Route:
    """Asking on it is not counted by a key's limits: nothing is done."""
    return Route(row.method, row.path, partial(_say, row=row), need=need, metered=False, json_only=False)


async def _say(it: Exchange, _: bytes, *, row: Fixed) -> None:
    if isinstance(row.answer, Failure):
        raise RefusedError(row.answer)
    await it.client.answer(200, row.answer)
