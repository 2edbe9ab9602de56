"""One list of models for the clients of both dialects."""

from typing import Any

import pytest

from cortex_gateway.dialects.models_list import entry, listing


def made(name: str = "m", **limit: int) -> dict[str, Any]:
    return entry(name, created=0, created_at="1970-01-01T00:00:00Z", limit=limit, details={"loaded": True})


def test_an_entry_has_both_shapes() -> None:
    """dialects.md 4.1.24."""
    assert (
        made().items()
        >= {
            "id": "m",
            "object": "model",
            "created": 0,
            "owned_by": "cortex",
            "type": "model",
            "display_name": "m",
            "created_at": "1970-01-01T00:00:00Z",
            "loaded": True,
        }.items()
    )


def test_the_context_has_every_spelling() -> None:
    """dialects.md 4.3.7."""
    known = made(context=8192, input=7168, output=1024)

    assert known["limit"] == {"context": 8192, "input": 7168, "output": 1024}
    assert known["meta"] == {"n_ctx": 8192}
    for key in ("max_model_len", "context_length", "max_context_length"):
        assert known[key] == 8192
    assert (known["max_input_tokens"], known["max_output_tokens"]) == (7168, 1024)


@pytest.mark.parametrize(
    "absent", ["limit", "max_model_len", "context_length", "max_input_tokens", "max_output_tokens"]
)
def test_an_unknown_length_is_absent_and_never_zero(absent: str) -> None:
    """A client must not compact for a window of nothing."""
    assert absent not in made()


def test_without_a_limit_for_input_it_is_the_context() -> None:
    """Nothing is reserved that nobody reserved."""
    assert made(context=100)["max_input_tokens"] == 100


def test_the_list_is_one_page() -> None:
    """Whatever page size was asked for, there is no more."""
    page = listing([made("a"), made("b")])

    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", False, "a", "b")
    assert listing([])["first_id"] is None
