"""What a body says of thinking, in every spelling, and what of it the engine is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from neuron_jax.daemon.fields import Fields
from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.prepare import Outside
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.schema import read_chat
from neuron_jax.daemon.thinking import read_budget, read_variables
from neuron_jax.workers.frames import Thoughts
from tests.fakes.rendering import job_of
from tests.fakes.tiny_model import write_tiny_model

OPEN, CLOSE = 261, 262
OUTSIDE = Outside(id="x", seed=7, created=1, max_context=100)
FORM = {"response_format": {"type": "json_object"}}


@pytest.mark.parametrize(
    ("body", "variables"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
        ({"reasoning": {"effort": "high"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {"enabled": False}}, {"enable_thinking": False}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled"}}, {"enable_thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "auto"}}, {}),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False, "other": 1}},
            {"enable_thinking": False, "other": 1},
        ),
    ],
)
def test_a_wish_has_many_spellings(body: dict[str, Any], variables: dict[str, Any]) -> None:
    """All of them become variables of the template, whose own come first."""
    assert read_variables(Fields(body)) == variables


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({}, None),
        ({"thinking_token_budget": 0}, 0),
        ({"thinking_budget": 5}, 5),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, 5),
        ({"reasoning": {"max_tokens": 5}, "thinking_budget": 5}, 5),
    ],
)
def test_so_has_a_budget(body: dict[str, Any], budget: int | None) -> None:
    assert read_budget(Fields(body)) == budget


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"thinking": "on"}, "thinking"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"thinking": {}}, "thinking.type"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"reasoning": []}, "reasoning"),
        ({"reasoning": {"effort": 7}}, "reasoning.effort"),
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"thinking_budget": 1.5}, "thinking_budget"),
        ({"thinking_budget": 5, "thinking_token_budget": 6}, "thinking_budget"),
        ({"reasoning": {"max_tokens": "5"}}, "reasoning.max_tokens"),
        ({"reasoning": {"exclude": "yes"}}, "reasoning.exclude"),
        ({"include_reasoning": 0}, "include_reasoning"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(Problem) as raised:
        read_chat({"model": "m", "messages": [{"role": "user", "content": "hi"}], **body})

    assert (raised.value.code, raised.value.param) == ("invalid_request_body", param)


def model(folder: Path, *, tags: bool) -> ModelText:
    """One whose template lets it think, with `tags` that are tokens."""
    write_tiny_model(folder, thinking=True)
    if tags:
        path = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(path)
        tokenizer.add_special_tokens(["<think>", "</think>"])
        tokenizer.save(path)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": tokenizer.get_vocab_size()}))
    return read_text(folder)


def thoughts(text: ModelText, **fields: Any) -> Thoughts | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "thinking_budget": 9, **fields}
    return job_of(read_chat(body), text, OUTSIDE).submits[0].thoughts


def test_the_engine_is_told_how_thoughts_are_closed(tmp_path: Path) -> None:
    """With an empty line behind them, but where a form begins; by themselves they begin where the prompt has not."""
    text = model(tmp_path, tags=True)

    assert thoughts(text) == Thoughts(9, CLOSE, (10, CLOSE, 10, 10), (OPEN,))
    assert thoughts(text, enable_thinking=True) == Thoughts(9, CLOSE, (10, CLOSE, 10, 10))
    assert thoughts(text, enable_thinking=True, **FORM) == Thoughts(9, CLOSE, (10, CLOSE))
    assert thoughts(text, thinking_budget=None) is None


def test_thoughts_without_an_end_of_their_own_are_not_bound(tmp_path: Path) -> None:
    """Nor is a model that has none."""
    assert thoughts(model(tmp_path / "words", tags=False), enable_thinking=True) is None
    assert thoughts(read_text(write_tiny_model(tmp_path / "none"))) is None
