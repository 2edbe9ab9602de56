"""What a request's headers say of it."""

import pytest

from cortex_gateway.auth.policy import NOBODY
from cortex_gateway.auth.principal import Principal
from cortex_gateway.context import LONGEST_KEY, RequestContext, session, timeout_secs
from cortex_gateway.errors import InvalidBody


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"x-claude-code-session-id": "s"}, "s"),
        ({"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"}, "s a"),
        ({"x-claude-code-agent-id": "a"}, None),
        ({"x-claude-code-session-id": "", "session_id": "c"}, "c"),
        ({"session_id": "c", "x-session-id": "x"}, "x"),
        ({"x-session-affinity": "z" * 999}, "z" * LONGEST_KEY),
    ],
)
def test_a_session_is_named_by_whichever_header_the_client_has(headers: dict[str, str], expected: str | None) -> None:
    """Helpers of one session have prompts of their own (dialects.md 4.1.26)."""
    assert session(headers) == expected


@pytest.mark.parametrize("sent", ["", "x", "0", "-1", "nan", "inf", "1e999"])
def test_a_timeout_is_a_number_of_seconds(sent: str) -> None:
    with pytest.raises(InvalidBody, match="x-request-timeout"):
        timeout_secs({"x-request-timeout": sent})


def test_a_timeout_is_read() -> None:
    assert timeout_secs({"x-request-timeout": "1.5"}) == 1.5
    assert timeout_secs({}) is None


def test_who_shows_no_key_is_anonymous() -> None:
    named = Principal(key="k", name="n", scopes=NOBODY.scopes)

    assert RequestContext(id="1", principal=NOBODY).anonymous
    assert not RequestContext(id="1", principal=named).anonymous
