"""A wish for thinking in every spelling that templates read, and the tokens around thoughts."""

from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from neuron_jax.text.thinking import spelled, thought_tokens
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests.fakes.vocabularies import byte_level_json

GPT_OSS = '{%- set reasoning_effort = "medium" %}'
LATEST = "{% if reasoning_effort == 'max' %}"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({}, {}),
        ({"enable_thinking": True}, {"enable_thinking": True, "thinking": True}),
        ({"enable_thinking": False}, {"enable_thinking": False, "thinking": False}),
        ({"enable_thinking": None}, {}),
        ({"thinking": False, "enable_thinking": True}, {"thinking": False, "enable_thinking": True}),
        ({"reasoning_effort": "high"}, {"reasoning_effort": "high", "enable_thinking": True, "thinking": True}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "low", "enable_thinking": False, "thinking": False}),
        ({"reasoning_effort": "minimal"}, {"reasoning_effort": "low", "enable_thinking": False, "thinking": False}),
        (
            {"reasoning_effort": "low", "enable_thinking": False},
            {"reasoning_effort": "low", "enable_thinking": False, "thinking": False},
        ),
        ({"other": 1}, {"other": 1}),
    ],
)
def test_a_wish_is_told_in_every_spelling(said: dict[str, Any], read: dict[str, Any]) -> None:
    """An effort says whether to think at all, unless that is said."""
    assert spelled(said, GPT_OSS) == read


@pytest.mark.parametrize(("source", "read"), [(GPT_OSS, "high"), (LATEST, "max")])
def test_an_effort_that_a_template_does_not_know_is_the_nearest(source: str, read: str) -> None:
    """It would stand in the prompt as a word that the model has never seen."""
    assert spelled({"reasoning_effort": "max"}, source)["reasoning_effort"] == read


def with_tokens(*names: str) -> Tokenizer:
    backend = Backend.from_buffer(byte_level_json())
    backend.add_special_tokens(list(names))
    return load_tokenizer(json=backend.to_str().encode(), gguf=None, config={})


def test_the_tokens_of_tags() -> None:
    """A prompt that ends in the tag has opened the thoughts."""
    tokenizer = with_tokens("<think>", "</think>")
    tokens, opened = thought_tokens(tokenizer, "think"), thought_tokens(tokenizer, "think_opened")
    assert tokens is not None
    assert opened is not None

    assert tokenizer.decode(tokens.opens, skip_special=False) == "<think>"
    assert tokenizer.decode((*tokens.closing, *tokens.begins), skip_special=False) == "\n</think>\n\n"
    assert (opened.opens, opened.closes, opened.closing) == ((), tokens.closes, tokens.closing)
    assert tokens.closes == tokenizer.id_of("</think>")


def test_the_tokens_of_harmony() -> None:
    """Thoughts are a message of their own, behind which the final one begins."""
    names = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")
    tokenizer = with_tokens(*names)
    tokens = thought_tokens(tokenizer, "harmony")
    assert tokens is not None

    assert tokenizer.decode(tokens.opens, skip_special=False) == "<|channel|>analysis<|message|>"
    assert tokenizer.decode(tokens.closing, skip_special=False) == (
        "<|end|><|start|>assistant<|channel|>final<|message|>"
    )
    assert (tokens.closes, tokens.begins) == (tokenizer.id_of("<|end|>"), ())


@pytest.mark.parametrize("reasoning", ["think", "think_opened", "harmony", "other"])
def test_without_such_tokens_there_are_none(reasoning: str) -> None:
    assert thought_tokens(with_tokens(), reasoning) is None
    assert thought_tokens(with_tokens("<|im_end|>"), reasoning) is None
