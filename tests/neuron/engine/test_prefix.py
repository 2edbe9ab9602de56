"""Names of pages: one name, one beginning of a text."""

import random

import pytest

from neuron_jax.engine.prefix import NAME_BYTES, Naming

SIZE = 4
SALT = b"salt of one engine"


def names_of(tokens: list[int], *, size: int = SIZE, salt: bytes = SALT) -> list[bytes]:
    names: list[bytes] = []
    Naming(size, salt).extend(names, tokens, len(tokens) // size)
    return names


def test_texts_share_names_exactly_as_far_as_they_are_the_same() -> None:
    rng = random.Random(1)
    for _ in range(200):
        one, other = ([rng.randrange(2) for _ in range(24)] for _ in "ab")
        same = next((at for at in range(24) if one[at] != other[at]), 24) // SIZE

        shared = [a == b for a, b in zip(names_of(one), names_of(other), strict=True)]
        assert shared == [True] * same + [False] * (6 - same)


def test_the_same_page_after_another_text_has_another_name() -> None:
    page = [1, 2, 3, 4]

    assert len(set(names_of(page * 3))) == 3


@pytest.mark.parametrize("steps", [[6], [1, 2, 3, 4, 5, 6], [0, 2, 2, 6]])
def test_names_do_not_depend_on_when_they_were_given(steps: list[int]) -> None:
    tokens = list(range(2**31 - 25, 2**31 - 1))
    names: list[bytes] = []
    for pages in steps:
        Naming(SIZE, SALT).extend(names, tokens, pages)

    assert names == names_of(tokens)
    assert {len(name) for name in names} == {NAME_BYTES}


def test_another_engine_gives_other_names() -> None:
    """Whoever knows no salt cannot look for two texts with one name."""
    tokens = list(range(16))

    assert not {*names_of(tokens)} & {*names_of(tokens, salt=b"another")}


def test_token_ids_of_several_bytes_are_told_apart() -> None:
    """256 is not the bytes 0 and 1 of two other tokens."""
    assert names_of([0, 1, 0, 0]) != names_of([256, 0, 0, 0])


def test_a_page_that_is_not_full_has_no_name() -> None:
    with pytest.raises(AssertionError, match="not full"):
        Naming(SIZE, SALT).extend([], [1, 2, 3], 1)
