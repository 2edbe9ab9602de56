"""OpenAI's conversations: items that are kept under one id, to which answers are added; knows no store and no model."""

from collections.abc import Sequence
from typing import Any

import msgspec
from attrs import evolve

from cortex_gateway.dialects.dialect import AnswerId, Change, Conversations, Kept
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.dialects.fields import Json, body, kind, refused
from cortex_gateway.dialects.responses.earlier import CONVERSATION, no_conversation
from cortex_gateway.dialects.responses.items import Conversation, Placed, kind_of, listed
from cortex_gateway.dialects.responses.page import listed as told_items
from cortex_gateway.dialects.responses.page import page
from cortex_gateway.dialects.responses.request import metadata
from cortex_gateway.dialects.responses.response import with_ids
from cortex_gateway.dialects.responses.tools import Tools

PATH = "/v1/conversations"
ENDED_WELL = ("completed", "incomplete")


def answered(found: Kept, asked: Sequence[Json], answer: bytes) -> Kept:
    """The conversation with what was asked and a Response's body, if that has ended well; each item once."""
    told = msgspec.json.decode(answer)
    return _longer(found, [*asked, *told["output"]]) if told["status"] in ENDED_WELL else found


def _begin(raw: bytes, identity: AnswerId) -> Kept:
    top = body(raw)
    name = CONVERSATION + identity.unique
    items = _items(top, identity) if top.get("items") is not None else []
    told = {"id": name, "object": "conversation", "created_at": identity.created, "metadata": metadata(top)}
    return Kept(name, None, msgspec.json.encode(items), msgspec.json.encode(told))


def _describe(raw: bytes) -> Change:
    top = body(raw)
    if "metadata" not in top:
        raise refused("metadata", "field required")
    noted = metadata(top)
    return Change(lambda found: evolve(found, answer=_noted(found, noted)), _told)


def _add(raw: bytes, identity: AnswerId) -> Change:
    items = _items(body(raw), identity)
    return Change(lambda found: _longer(found, items), lambda _: told_items(items))


def _remove(name: str) -> Change:
    return Change(lambda found: _without(found, name), _told)


def _item(found: Kept, name: str) -> bytes:
    return msgspec.json.encode(_found(_said(found), name))


def _deleted(name: str) -> bytes:
    return msgspec.json.encode({"id": name, "object": "conversation.deleted", "deleted": True})


def _items(top: Json, identity: AnswerId) -> list[dict[str, Any]]:
    """A body's items as they are kept: what no model here could be told of is refused now and not when it is used."""
    items = listed(top.get("items"), "items")
    for at, item in enumerate(items):
        if kind_of(item, f"items.{at}") == "item_reference":
            raise refused(f"items.{at}", "an item is kept, not a reference to one")
    Conversation(Tools()).add(Placed(item, f"items.{at}") for at, item in enumerate(items))
    return with_ids(items, identity)


def _longer(found: Kept, items: Sequence[Json]) -> Kept:
    said = _said(found)
    known = {item["id"] for item in said}
    return evolve(found, input=msgspec.json.encode([*said, *(item for item in items if item["id"] not in known)]))


def _without(found: Kept, name: str) -> Kept:
    said = _said(found)
    _found(said, name)
    return evolve(found, input=msgspec.json.encode([item for item in said if item["id"] != name]))


def _found(said: Sequence[Json], name: str) -> Json:
    for item in said:
        if item["id"] == name:
            return item
    message = f"Item with id {kind(name)} not found in this conversation."
    raise RefusedError(Failure(404, "invalid_request_error", "item_not_found", message, "item_id"))


def _said(found: Kept) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = msgspec.json.decode(found.input)
    return said


def _noted(found: Kept, noted: dict[str, str]) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(found.answer), "metadata": noted})


def _told(found: Kept) -> bytes:
    return found.answer


ROUTES = Conversations(
    PATH,
    CONVERSATION,
    begin=_begin,
    describe=_describe,
    add=_add,
    remove=_remove,
    items=lambda found, query: page(_said(found), query),
    item=_item,
    deleted=_deleted,
    missing=no_conversation,
)
