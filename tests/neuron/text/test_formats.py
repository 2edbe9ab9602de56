"""Which parsers a template asks for."""

import pytest

from neuron_jax.text.formats import markers, reasoning_format, tool_format


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<tool_call>\\n{{ call | tojson }}\\n</tool_call>", "hermes"),
        ("<tool_call><function={{ name }}>", None),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("Environment: ipython", "llama3_json"),
        ("{{ messages }}", None),
    ],
)
def test_the_tool_format_is_read_off_the_template(source: str, expected: str | None) -> None:
    """A format nobody here understands has no parser: its calls stay text."""
    assert tool_format(source) == expected


@pytest.mark.parametrize(
    ("source", "prompt", "expected"),
    [
        ("... </think> ...", "<bot>\n", "think"),
        ("... </think> ...", "<bot>\n<think>\n", "think_opened"),
        ("... </think> ...", "<bot>\n<think>\n\n</think>\n\n", "think"),
        ("...", "<bot>\n", None),
    ],
)
def test_the_reasoning_format_depends_on_the_prompt_too(source: str, prompt: str, expected: str | None) -> None:
    """Some templates open the tag, some open and close it to switch thinking off."""
    assert reasoning_format(source, prompt) == expected


def test_markers_are_those_of_the_parsers_in_use() -> None:
    """Only these may be shown although they are special tokens."""
    assert markers(reasoning=None, tools=None) == frozenset()
    assert markers(reasoning="think", tools="llama3_json") == {"<think>", "</think>", "<|python_tag|>"}
