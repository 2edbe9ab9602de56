"""A gap between two texts becomes the prompt that its model was trained with."""

import pytest
from tokenizers import Tokenizer as Backend

from neuron_jax.text.errors import TooManyTokensError
from neuron_jax.text.fill import FILLINGS, Filling, fill_tokens
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.fakes.vocabularies import byte_level_json, sentence_piece, sentence_piece_header


def with_tokens(filling: Filling) -> Tokenizer:
    backend = Backend.from_buffer(byte_level_json())
    backend.add_special_tokens([filling.before, filling.behind, filling.middle, *filling.ends])
    return load_tokenizer(json=backend.to_str().encode(), gguf=None, config={})


@pytest.mark.parametrize("filling", FILLINGS, ids=lambda filling: filling.middle)
def test_the_texts_stand_behind_their_tokens(filling: Filling) -> None:
    """What is in front of the gap first, then what is behind it, then the place of the answer."""
    tokenizer = with_tokens(filling)
    tokens = fill_tokens(tokenizer)
    assert tokens is not None
    ids = tokens.prompt(tokenizer, "a = ", "\nb", 99)

    assert tokenizer.decode(ids, skip_special=False) == f"{filling.before}a = {filling.behind}\nb{filling.middle}"
    assert [tokenizer.id_of(end) for end in filling.ends] == list(tokens.ends)


def test_names_of_control_tokens_are_somebody_s_code() -> None:
    tokenizer = with_tokens(FILLINGS[0])
    tokens = fill_tokens(tokenizer)
    assert tokens is not None
    ids = tokens.prompt(tokenizer, "<|fim_middle|>", "<|im_end|>", 99)

    assert (ids.count(tokens.middle), ids[-1]) == (1, tokens.middle)
    assert not tokenizer.special_ids & set(ids[1:-1]) - {tokens.behind}


def test_what_is_behind_the_gap_begins_no_text() -> None:
    """SentencePiece puts a space before a text's first word: there in front of the gap, not behind it (CodeLlama)."""
    header = dict(sentence_piece_header())
    names = ["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"]
    header["tokenizer.ggml.tokens"] = [*header["tokenizer.ggml.tokens"], *names]
    header["tokenizer.ggml.token_type"] = [*header["tokenizer.ggml.token_type"], 3, 3, 3, 3]
    header["tokenizer.ggml.scores"] = [*header["tokenizer.ggml.scores"], 0.0, 0.0, 0.0, 0.0]
    tokenizer = load_tokenizer(json=None, gguf=header, config={})
    tokens = fill_tokens(tokenizer)
    assert tokens is not None
    ids = tokens.prompt(tokenizer, "hello", "world", 99)
    at = ids.index(tokens.behind)

    assert ids[:2] == [tokenizer.id_of("<s>"), tokens.before]
    assert b"".join(map(tokenizer.piece, ids[2:at])) == b" hello"
    assert b"".join(map(tokenizer.piece, ids[at + 1 : -1])) == b"world"


def test_a_tokenizer_without_them_fills_nothing() -> None:
    assert fill_tokens(sentence_piece()) is None


def test_too_many_tokens_are_refused() -> None:
    tokenizer = with_tokens(FILLINGS[0])
    tokens = fill_tokens(tokenizer)
    assert tokens is not None

    assert len(tokens.prompt(tokenizer, "abc", "abc", 9)) == 9
    with pytest.raises(TooManyTokensError):
        tokens.prompt(tokenizer, "abc", "abcd", 9)
