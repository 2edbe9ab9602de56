"""Pages of kept items: their order, where they begin, how many, and what asks for none."""

from typing import Any

import msgspec
import pytest

from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.dialects.responses.page import page

ITEMS = [{"id": f"msg_{number}"} for number in range(150)]


def told(**query: str) -> Any:
    return msgspec.json.decode(page(ITEMS, query))


@pytest.mark.parametrize(
    ("query", "first", "count", "more"),
    [
        ({}, 149, 20, True),
        ({"order": "asc"}, 0, 20, True),
        ({"order": "asc", "after": "msg_0"}, 1, 20, True),
        ({"after": "msg_20"}, 19, 20, False),
        ({"after": "msg_21"}, 20, 20, True),
        ({"limit": "1"}, 149, 1, True),
        ({"limit": "100"}, 149, 100, True),
    ],
)
def test_a_page_is_what_its_query_asks_for(query: dict[str, str], first: int, count: int, more: bool) -> None:
    """The newest first unless asked otherwise."""
    found = told(**query)

    assert found["data"][0] == ITEMS[first]
    assert len(found["data"]) == count
    assert (found["first_id"], found["last_id"]) == (found["data"][0]["id"], found["data"][-1]["id"])
    assert found["has_more"] is more


def test_behind_the_last_item_nothing_comes() -> None:
    found = told(order="asc", after="msg_149")

    assert (found["data"], found["first_id"], found["last_id"], found["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),  # more digits than Python reads
        ({"limit": "-1"}, "limit"),
        ({"limit": "\u0661"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "msg_150"}, "after"),
    ],
)
def test_what_asks_for_no_page_is_refused(query: dict[str, str], param: str) -> None:
    with pytest.raises(RefusedError) as refused:
        told(**query)

    assert (refused.value.failure.status, refused.value.failure.param) == (400, param)
