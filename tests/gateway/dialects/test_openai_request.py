"""Of a passed-through request only `model` and `stream` are read, and at most `model` is changed."""

import pytest

from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.dialects.openai.request import read

ODD = b'{ "z": 1.10, "model":"a" ,"messages":[{"b":"\\u00e9","a":1e2}], "stream" : true}'


def test_the_same_name_leaves_every_byte() -> None:
    """No alias, no change, down to the blanks."""
    assert read(ODD).addressed("a") == ODD


def test_another_name_changes_that_value_only() -> None:
    """Order, numbers and escapes of everything else stay as the client wrote them."""
    assert read(ODD).addressed("org/b") == (
        b'{"z":1.10,"model":"org/b","messages":[{"b":"\\u00e9","a":1e2}],"stream":true}'
    )


@pytest.mark.parametrize(("stream", "meant"), [("true", True), ("false", False), ("null", False)])
def test_stream_is_read(stream: str, meant: bool) -> None:
    """Absent and null are false."""
    assert read(f'{{"model":"m","stream":{stream}}}'.encode()).stream is meant
    assert read(b'{"model":"m"}').stream is False


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "malformed_json", None),
        (b"{", "malformed_json", None),
        (b'{"model":"m"} x', "malformed_json", None),
        (b'{"model":"m","temperature":NaN}', "malformed_json", None),
        (b'{"model":"m","x":"\xff"}', "malformed_json", None),
        ('{"model":"m","x":"é"}'.encode("latin-1"), "malformed_json", None),
        (b'{"model":"m"}'.decode().encode("utf-16"), "malformed_json", None),
        (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed_json", None),
        (b'{"model":"m","x":"\\ud800"}', "malformed_json", None),
        (b"[]", "invalid_request_body", None),
        (b'"m"', "invalid_request_body", None),
        (b"null", "invalid_request_body", None),
        (b"{}", "missing_model_field", "model"),
        (b'{"model":""}', "missing_model_field", "model"),
        (b'{"model":null}', "missing_model_field", "model"),
        (b'{"model":7}', "invalid_request_body", "model"),
        (b'{"model":["m"]}', "invalid_request_body", "model"),
        (b'{"model":"' + b"m" * 513 + b'"}', "invalid_request_body", "model"),
        (b'{"model":"m","stream":"yes"}', "invalid_request_body", "stream"),
        (b'{"model":"m","stream":1}', "invalid_request_body", "stream"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(body: bytes, code: str, param: str | None) -> None:
    """Each with its code, before a model is loaded for it."""
    with pytest.raises(RefusedError) as refused:
        read(body)

    failure = refused.value.failure
    assert (failure.status, failure.type) == (400, "invalid_request_error")
    assert (failure.code, failure.param) == (code, param)


@pytest.mark.parametrize(
    ("value", "key"),
    [('"k"', "k"), ('""', None), ("null", None), ("7", None), ('["k"]', None), (f'"{"k" * 300}"', "k" * 256)],
)
def test_a_string_names_the_conversation(value: str, key: str | None) -> None:
    """`prompt_cache_key`: what is no string says nothing, and of a long one the beginning is enough."""
    assert read(f'{{"model":"m","prompt_cache_key":{value}}}'.encode()).cache_key == key
    assert read(b'{"model":"m"}').cache_key is None


def test_enormous_numbers_are_the_neuron_s_business() -> None:
    """The gateway judges no parameter."""
    body = b'{"model":"m","max_tokens":1' + b"0" * 400 + b',"temperature":1e999}'

    assert read(body).addressed("m") == body
