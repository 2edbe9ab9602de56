"""What a key looks like, and which ones a request carries."""

import hashlib

import pytest

from cortex_gateway.auth import keys as form

RANDOM = bytes(range(form.ID_BYTES + form.SECRET_BYTES))
KEY = form.mint(RANDOM)


def test_a_key_says_its_id_and_hides_the_rest() -> None:
    """256 bits of it are secret, and what is kept is their SHA-256."""
    assert KEY.id == "000102030405"
    assert KEY.text == "sk-cortex-000102030405-BgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCU"
    assert form.identity(KEY.text) == KEY.id
    assert hashlib.sha256(KEY.text.encode()).digest() == KEY.digest
    assert "BgcI" not in repr(KEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "sk-proj-abc",
        KEY.text[:-1],
        KEY.text + "x",
        KEY.text + "\n",
        " " + KEY.text,
        KEY.text.upper(),
        "é" * 78,
    ],
)
def test_what_is_no_key_of_ours_has_no_id(text: str) -> None:
    """Placeholders, and keys that were not copied whole."""
    assert form.identity(text) is None


def test_only_the_whole_key_matches() -> None:
    """Not one with the same id."""
    assert form.matches(KEY.text, KEY.digest)
    assert not form.matches(KEY.text[:-1] + "Q", KEY.digest)


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([], ()),
        ([(b"authorization", b"Bearer k")], ("k",)),
        ([(b"authorization", b"bEARER   k ")], ("k",)),
        ([(b"authorization", b"Basic k")], ()),
        ([(b"authorization", b"Bearer")], ()),
        ([(b"authorization", b"Bearer ")], ()),
        ([(b"authorization", b"k")], ()),
        ([(b"x-api-key", b" k ")], ("k",)),
        ([(b"x-api-key", b"")], ()),
        ([(b"x-api-key", b"a"), (b"authorization", b"Bearer b"), (b"authorization", b"Bearer c")], ("b", "c", "a")),
        ([(b"authorization", b"Bearer \xff\xfe")], ("ÿþ",)),
    ],
)
def test_a_request_carries_keys_in_two_headers(headers: list[tuple[bytes, bytes]], found: tuple[str, ...]) -> None:
    """OpenAI's and Anthropic's; the scheme in any case (RFC 7235 section 2.1)."""
    assert form.offered(headers) == found
