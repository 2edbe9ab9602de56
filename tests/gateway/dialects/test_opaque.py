"""What is sealed comes back as it was, and what a client makes of it is never worse than nothing."""

import base64
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.dialects.opaque import MOST_BYTES, seal, unseal


@given(st.text())
def test_what_was_sealed_comes_back(text: str) -> None:
    """Under its kind only."""
    sealed = seal("thinking", text)

    assert sealed.isascii()
    assert unseal("thinking", sealed) == text
    assert unseal("reasoning", sealed) is None


@given(st.text())
def test_what_a_client_made_of_it_is_nothing(tail: str) -> None:
    """Not an exception: it comes in the body of a request."""
    assert unseal("thinking", f"cortex1.thinking.{tail}") in (None, "")


@pytest.mark.parametrize("value", ["cortex1.thinking.é", "cortex1.thinking.", "cortex1.thinking.AAAA", "", None, 7, {}])
def test_what_is_none_is_nothing(value: object) -> None:
    assert unseal("thinking", value) is None


def test_a_bomb_is_nothing() -> None:
    """Some kilobytes that become more than anybody would think."""
    packed = base64.urlsafe_b64encode(zlib.compress(bytes(MOST_BYTES + 1))).decode()

    assert unseal("thinking", f"cortex1.thinking.{packed}") is None
