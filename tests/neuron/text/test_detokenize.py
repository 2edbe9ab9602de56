"""Token ids to text as they come: whole characters only, and nothing lost."""

import random

import pytest

from neuron_jax.text.detokenize import Detokenizer
from neuron_jax.text.tokenizer import Tokenizer
from tests.fakes.vocabularies import byte_level, sentence_piece


def stream(tokenizer: Tokenizer, ids: list[int], size: int = 1) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    chunks = [detokenizer.feed(ids[at : at + size]) for at in range(0, len(ids), size)]
    return [*chunks, detokenizer.close()]


@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()], ids=["bytes", "sentence-piece"])
def test_the_chunks_joined_are_the_whole_decoded(tokenizer: Tokenizer) -> None:
    """For any ids, sense or nonsense, and any chunking."""
    rng = random.Random(11)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(24)]
        for size in (1, 2, 5, 24):
            assert "".join(stream(tokenizer, ids, size)) == tokenizer.decode(ids, skip_special=True)


@pytest.mark.parametrize("tokenizer", [byte_level(), sentence_piece()], ids=["bytes", "sentence-piece"])
def test_a_character_comes_whole_or_not_at_all(tokenizer: Tokenizer) -> None:
    """Four tokens make one rocket: nothing, nothing, nothing, rocket."""
    ids = tokenizer.encode("🚀", add_special=False)[-4:]

    assert stream(tokenizer, ids) == ["", "", "", "🚀", ""]


def test_an_unfinished_character_is_marked_at_the_end_only() -> None:
    """The replacement character says that the model stopped inside a character."""
    tokenizer = byte_level()
    ids = tokenizer.encode("a🚀", add_special=False)[:-1]

    assert stream(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_special_tokens_inside_a_character_do_not_hurt_it() -> None:
    """They have no bytes, so the character goes on behind them."""
    tokenizer = byte_level()
    first, *rest = tokenizer.encode("é", add_special=False)

    assert "".join(stream(tokenizer, [first, 1, *rest])) == "é"


def test_visible_special_tokens_are_shown() -> None:
    """A parser that looks for a tag gets it although it is a special token."""
    detokenizer = Detokenizer(byte_level(), visible=frozenset({2}))

    assert detokenizer.feed([1, 2]) == "<|python_tag|>"


def test_the_leading_space_of_sentence_piece_depends_on_what_came_before() -> None:
    """A turn begins without it; text that goes on from a raw prompt keeps it."""
    tokenizer = sentence_piece()
    ids = [2, tokenizer.id_of("\u2581world") or 0, tokenizer.id_of("\u2581w") or 0]

    assert Detokenizer(tokenizer).feed(ids) == "world w"
    assert Detokenizer(tokenizer, continues=True).feed(ids) == " world w"
