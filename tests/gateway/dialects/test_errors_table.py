"""Each dialect spells a failure through its one table."""

import json

import pytest

from cortex_gateway.dialects.anthropic import errors as anthropic_errors
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.openai import errors as openai_errors

TOO_LONG = Failure(
    400, "invalid_request_error", "context_length_exceeded", "too long", extras={"prompt_len": 9000, "max": 8192}
)


def test_openai_s_envelope_has_four_keys_and_the_extras() -> None:
    """`code` and `param` are there even when they are null."""
    assert json.loads(openai_errors.body(TOO_LONG)) == {
        "error": {
            "message": "too long",
            "type": "invalid_request_error",
            "code": "context_length_exceeded",
            "param": None,
            "prompt_len": 9000,
            "max": 8192,
        }
    }


def test_openai_s_event_is_the_envelope_as_data() -> None:
    """What the SDKs look for in the middle of a stream."""
    assert openai_errors.event(TOO_LONG) == b"data: " + openai_errors.body(TOO_LONG) + b"\n\n"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (408, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (499, "invalid_request_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_anthropic_s_type_follows_the_status(status: int, kind: str) -> None:
    """dialects.md 4.1.20."""
    failure = Failure(status, "whatever", None, "words")

    assert json.loads(anthropic_errors.body(failure, "req_1")) == {
        "type": "error",
        "error": {"type": kind, "message": "words"},
        "request_id": "req_1",
    }


def test_an_overlong_prompt_is_told_in_the_words_clients_compact_on() -> None:
    """dialects.md 4.1.19."""
    assert anthropic_errors.message(TOO_LONG) == "prompt is too long: 9000 tokens > 8192 maximum"


@pytest.mark.parametrize("extras", [{}, {"max": 8192}, {"prompt_len": 9000}])
def test_without_the_numbers_the_phrase_is_still_there(extras: dict[str, int]) -> None:
    """A neuron that does not count still makes the client compact."""
    failure = Failure(400, "invalid_request_error", "context_length_exceeded", "much", extras=extras)

    assert anthropic_errors.message(failure) == "prompt is too long: much"


def test_an_envelope_is_read_back() -> None:
    """Code, param and extras survive the gateway (wire.md 2.9.6), and the Retry-After header joins them."""
    failure = openai_errors.read(400, openai_errors.body(TOO_LONG), 7)

    assert failure == Failure(
        400, TOO_LONG.type, TOO_LONG.code, TOO_LONG.message, None, 7, {"prompt_len": 9000, "max": 8192}
    )


@pytest.mark.parametrize(
    ("status", "raw", "kind"),
    [(404, b'{"error":"gone"}', "invalid_request_error"), (500, b'{"error":{"message":"gone"}}', "api_error")],
)
def test_poor_envelopes_get_a_type_from_their_status(status: int, raw: bytes, kind: str) -> None:
    """A bare string is a message."""
    failure = openai_errors.read(status, raw)

    assert failure is not None
    assert (failure.message, failure.type) == ("gone", kind)


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b"{}", b'{"error":7}', b'{"error":{}}', b"[" * 100_000])
def test_what_is_no_envelope_is_none(raw: bytes) -> None:
    """A page of some proxy is not an error of ours."""
    assert openai_errors.read(502, raw) is None
