"""A wish for thinking in every spelling that templates read."""

from typing import Any

import pytest

from neuron_jax.text.thinking import spelled

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
