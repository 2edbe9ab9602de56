"""What a Responses request continues: items of answers and conversations that were kept; knows no store and no neuron."""

from collections.abc import Sequence

import msgspec

from cortex_gateway.dialects.dialect import Earlier, Kept
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.fields import Json, kind, refused
from cortex_gateway.dialects.responses.items import Placed, kind_of

RESPONSE, CONVERSATION = "resp_", "conv_"
"""How the ids of answers and of conversations begin."""


def answers_of(items: Sequence[str]) -> frozenset[str]:
    """The answers of which these items are parts, by their ids as `response.item_id` makes them."""
    return frozenset(found for item in items if (found := _answer_of(item)) is not None)


def _answer_of(item: str) -> str | None:
    _, _, numbered = item.partition("_")
    return RESPONSE + numbered[:32] if len(numbered) > 32 else None


def no_conversation(identity: str) -> Failure:
    message = (
        f"Conversation with id {kind(identity)} not found: it is not here, not for so long, or not under this key."
    )
    return Failure(404, "invalid_request_error", "conversation_not_found", message, "conversation")


def history(earlier: Earlier) -> list[Placed]:
    """What was said before, oldest first; of a summary and what it sums up, only the summary."""
    said: list[Placed] = []
    for item in msgspec.json.decode(earlier.conversation.input) if earlier.conversation else ():
        if item["type"] == "compaction":
            said = []
        if item["type"] != "compaction_trigger":
            said.append(Placed(item, "conversation"))
    for kept in earlier.chain or ():
        output = msgspec.json.decode(kept.answer)["output"]
        if any(item["type"] == "compaction" for item in output):
            said = []
        else:
            items = msgspec.json.decode(kept.input)  # one that asked for a summary and got none asks no more
            said += [Placed(item, "previous_response_id") for item in items if item.get("type") != "compaction_trigger"]
        said += [Placed(item, "previous_response_id") for item in output]
    return said


def check_ended(chain: Sequence[Kept]) -> None:
    """Refuse to continue an answer that is still under way; only the last one can be."""
    if chain and msgspec.json.decode(chain[-1].answer).get("status") in ("queued", "in_progress"):
        message = f"the answer {chain[-1].id!r} has not come to its end yet"
        raise refused("previous_response_id", message, "previous_response_not_found")


def resolved(sent: Sequence[Json], earlier: Earlier) -> list[Json]:
    """The request's items, those in place of which only an id was sent taken from earlier answers."""
    known = {
        item["id"]: item
        for kept in (*(earlier.chain or ()), *earlier.others)
        for item in (*msgspec.json.decode(kept.input), *msgspec.json.decode(kept.answer)["output"])
        if isinstance(item.get("id"), str)
    }
    if earlier.conversation is not None:
        known |= {item["id"]: item for item in msgspec.json.decode(earlier.conversation.input)}
    items = []
    for at, item in enumerate(sent):
        if kind_of(item, f"input.{at}") == "item_reference":
            if item["id"] not in known:
                message = f"Item with id {kind(item['id'])} not found: it was not kept, or not under this key"
                raise refused(f"input.{at}.id", message, "item_not_found")
            item = known[item["id"]]  # noqa: PLW2901 -- that is what the reference stands for
        items.append(item)
    return items
