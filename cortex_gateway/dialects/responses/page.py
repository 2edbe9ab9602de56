"""A page of kept items, as the lists of Responses and of conversations tell it; knows no item's meaning."""

from collections.abc import Mapping, Sequence

import msgspec

from cortex_gateway.dialects.fields import Json, kind, refused

MOST_ITEMS, USUAL_ITEMS = 100, 20


def page(items: Sequence[Json], query: Mapping[str, str]) -> bytes:
    """Of `items`, the oldest first, those that `order`, `after` and `limit` ask for: the newest first unless asked otherwise.

    Raises RefusedError.
    """
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise refused("order", f"must be asc or desc, found {kind(order)}")
    ordered = items if order == "asc" else items[::-1]
    if "after" in query:
        found = next((at for at, item in enumerate(ordered) if item["id"] == query["after"]), None)
        if found is None:
            raise refused("after", f"there is no item {kind(query['after'])}")
        ordered = ordered[found + 1 :]
    told = ordered[: _limit(query.get("limit"))]
    return listed(told, more=len(ordered) > len(told))


def listed(items: Sequence[Json], *, more: bool = False) -> bytes:
    """Just these."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return msgspec.json.encode({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": more})


def _limit(told: str | None) -> int:
    if told is None:
        return USUAL_ITEMS
    if not (told.isascii() and told.isdigit() and 1 <= int(told[:9]) <= MOST_ITEMS):
        raise refused("limit", f"must be a number from 1 to {MOST_ITEMS}")
    return int(told)
