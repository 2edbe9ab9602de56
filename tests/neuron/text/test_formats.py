"""Which parsers a template asks for."""

from typing import Any

import pytest

from neuron_jax.text.formats import markers, reasoning_format, reasoning_parser, tool_format
from neuron_jax.text.pieces import Reasoning, Text, merged
from neuron_jax.text.template import ChatTemplate


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<tool_call>\\n{{ call | tojson }}\\n</tool_call>", "hermes"),
        ("<tool_call>\\n<function={{ name }}>", "qwen3_coder"),
        ("<tool_call>{{ name }}<arg_key>{{ key }}</arg_key>", "glm"),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}", "mistral_args"),
        ("{{ '<|python_tag|>' }}", "llama3_json"),
        ("Environment: ipython", "llama3_json"),
        ("calls as [func_name1(params_name1=params_value1)]", "pythonic"),
        ("{{ '<|channel|>final<|message|>' }}", "harmony"),
        ("{{ '<\uff5ctool▁calls▁begin\uff5c>' }}", "deepseek"),
        ("<{{ dsml_token }}function_calls>", "deepseek_dsml"),
        ("{{ '<|tool_call>call:' }}", "gemma4"),
        ("{{ '<start_function_call>call:' }}", "functiongemma"),
        ("{{ '<|tool_list_start|>' }}", "lfm2"),
        ("{{ '<|START_ACTION|>[' }}", "cohere"),
        ("Write 'Action:' followed by a json-formatted list of actions that you want to perform", "command_r"),
        ("{{ 'List of tools: [' }}", "lfm2"),
        ("write <function_calls>\\nf(a='b')\\n</function_calls>", "olmo3"),
        ("{{ '<tool_calls>[' }}", "hunyuan"),
        ("<seed:tool_call>\\n<function={{ name }}>", "seed_oss"),
        ("{{ '<minimax:tool_call>' ~ '\\n' }}", "minimax"),
        ("<TOOLCALL>[", "nemotron"),
        ("{{ '<|tool_call|>' }}", "granite"),
        ("<|tool_call|>{{ call }}<|/tool_call|>", "phi4"),
        ("<|observation|>", "glm4"),
        ("{{ messages }}", None),
    ],
)
def test_the_tool_format_is_read_off_the_template(source: str, expected: str | None) -> None:
    """A format nobody here understands has no parser: its calls stay text."""
    assert tool_format(source) == expected


QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nWithin <tool_call></tool_call> tags.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}{{- call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""Written as those of Qwen 2.5 are: calls in tags, answers of tools as a user's."""
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
USER = {"role": "user", "content": "Sun?"}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "And in Köln?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "9 degrees"},
    {"role": "tool", "tool_call_id": "2", "content": "rain"},
]


def test_a_template_as_those_of_qwen() -> None:
    """It has tools in Hermes' format and no thinking, and a turn of calls and answers is written as the model knows it."""
    template = ChatTemplate(QWEN, bos_token=None, eos_token="<|im_end|>")
    prompt = template.render(CALLED, tools=[TOOL])

    assert template.supports_tools
    assert not template.supports_thinking
    assert (tool_format(QWEN), reasoning_format(QWEN, prompt)) == ("hermes", None)
    assert prompt.endswith(
        "<|im_start|>user\nAnd in Köln?<|im_end|>\n"
        '<|im_start|>assistant\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n9 degrees\n</tool_response>\n<tool_response>\nrain\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


QWEN3 = """
{%- set ns = namespace(looking=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.looking and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.looking = false %}{%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
        {%- if loop.index0 > ns.last and thought %}
            {%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content %}
        {%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
"""Written as those of Qwen 3 are: thoughts of earlier turns are dropped, and thinking can be switched off."""


def test_a_template_as_those_of_qwen_3() -> None:
    """It opens no tag itself; where thinking is off, what it writes is closed."""
    template = ChatTemplate(QWEN3, bos_token=None, eos_token="<|im_end|>")
    turns = [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nNo."}, USER]
    prompt = template.render(turns)
    off = template.render(turns, variables={"enable_thinking": False})

    assert template.supports_thinking
    assert "hm" not in prompt
    assert "assistant\nNo.<|im_end|>" in prompt
    assert [reasoning_format(QWEN3, text) for text in (prompt, off)] == ["think", "think"]
    assert off == prompt + "<think>\n\n</think>\n\n"


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
    assert "<|channel|>" in markers(reasoning="harmony", tools=None)
    assert markers(reasoning="think", tools="llama3_json") == {"<think>", "</think>", "<|python_tag|>"}


@pytest.mark.parametrize(
    ("source", "format_"),
    [
        ("{{ '<|channel|>final<|message|>' }}", "harmony"),
        ("{{ '<|START_ACTION|>[' }}", "cohere"),
        ("<seed:tool_call>\\n<function={{ name }}>", "seed_oss"),
        ("{{ '<tool_calls>[' }}</think>", "hunyuan"),
        ("<tool_call>\\n<function={{ name }}></think>", "think"),
        ("<tool_call>\\n<function={{ name }}>", None),
    ],
)
def test_thoughts_are_read_by_the_format_of_calls_where_that_tells_them(source: str, format_: str | None) -> None:
    """Then nothing else looks for them."""
    assert reasoning_format(source, "") == format_
    assert (format_ is not None and reasoning_parser(format_, tools=tool_format(source)) is None) == (
        format_ not in (None, "think")
    )


def test_only_what_opens_calls_ends_thoughts_that_were_left_open() -> None:
    parser = reasoning_parser("think", tools="qwen3_coder")
    assert parser is not None
    pieces = [*parser.feed("<think>a </tool_call> b <tool_call>c"), *parser.close()]

    assert merged(pieces) == (Reasoning("a </tool_call> b"), Text("<tool_call>c"))
