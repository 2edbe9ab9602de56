"""Chat templates: Hugging Face's dialect, OpenAI's messages, and bounds."""

import tracemalloc
from datetime import datetime
from typing import Any

import pytest

from neuron_jax.text import sandbox
from neuron_jax.text.errors import TemplateError
from neuron_jax.text.template import ChatTemplate, unused_character

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
USER = {"role": "user", "content": "hi"}


def render(source: str, *messages: dict[str, Any], **options: Any) -> str:
    clock = lambda: datetime(2024, 7, 26)  # noqa: DTZ001 - templates print local time
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", clock=clock)
    return template.render(messages or (USER,), **options)


def call(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("{{ {'b': 'é', 'a': '<'} | tojson }}", '{"b": "é", "a": "<"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{% set ns = namespace(n=0) %}{% for x in 'ab' %}{% set ns.n = loop.length %}{% endfor %}{{ ns.n }}", "2"),
        ("{% for x in [1, 2] %}{{ x }}{{ '' if loop.last else ',' }}{% endfor %}", "1,2"),
        ("{% for x in [3, 4] if x > 3 %}{{ loop.index }}{{ x }}{% else %}none{% endfor %}", "14"),
        ("{% for x in nothing %}{% else %}none{% endfor %}", "none"),
        ("{% generation %}a{% set v = 1 %}{% endgeneration %}{{ v }}", "a1"),
        ("{{ tools is none }}{{ '=' * 3 }}{{ 2 ** 3 }}", "True===8"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(1) }}", "[1]"),
    ],
)
def test_the_dialect_is_hugging_faces(source: str, expected: str) -> None:
    """Block trimming, loop controls, JSON without escapes, dates, generation marks, namespaces, macros."""
    assert render(source) == expected


def test_messages_are_rendered_in_order() -> None:
    """The prompt ends where the model is to go on."""
    assert (
        render(TURNS, USER, {"role": "assistant", "content": "yo"}, USER) == "<user>hi\n<assistant>yo\n<user>hi\n<bot>"
    )
    assert render(TURNS, add_generation_prompt=False) == "<user>hi\n"


def test_a_template_may_refuse_a_conversation() -> None:
    """Its own words reach the client."""
    with pytest.raises(TemplateError, match=r"^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ nothing.attribute }}",
        "{{ 'a' + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages | nosuch }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% if %}",
        "{{ strftime_now(1) }}",
    ],
)
def test_whatever_goes_wrong_inside_is_a_template_error(source: str) -> None:
    """A template is a stranger's program: no exception of its passes through."""
    with pytest.raises(TemplateError):
        render(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "2000000 loop passes"),
        ("{{ 'a' * 10 ** 12 }}", "characters"),
        ("{{ 10 ** 12 * [1] }}", "characters"),
        ("{{ 9 ** 9999 }}", "4096 bits"),
        ("{% for a in range(9999) %}{{ 'a' * 10000 }}{% endfor %}", "characters"),
        ("{{ range(10 ** 9) }}", "Range too big"),
    ],
)
def test_a_template_cannot_run_away(source: str, message: str) -> None:
    """Loops, output and repeated strings are bounded."""
    with pytest.raises(TemplateError, match=message):
        render(source)


def test_what_is_just_within_its_bounds_runs() -> None:
    """The last pass of a loop, the last bit of a power, and products of which one factor is nothing."""
    budget = sandbox._Budget(2)
    budget.spend()
    budget.spend()
    with pytest.raises(TemplateError, match="loop passes"):
        budget.spend()

    assert render("{{ 2 ** 2048 > 0 }}{{ 3 * 4 }}{{ '-' * 0 }}{{ 2 * 'ab' }}{{ [1] * 2 }}") == "True12abab[1, 1]"
    with pytest.raises(TemplateError, match="4096 bits"):
        render("{{ 2 ** 2049 }}")


def test_the_loop_budget_is_per_rendering() -> None:
    """A template that needs half of it may be used again and again."""
    template = ChatTemplate("{% for a in range(99999) %}{% endfor %}ok", bos_token=None, eos_token=None)

    assert {template.render([USER]) for _ in range(25)} == {"ok"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hi", "<user>hi"),
        (None, "<user>"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "<user>a\nb"),
        ([], "<user>"),
    ],
)
def test_content_comes_as_a_string_to_templates_that_take_strings(content: Any, expected: str) -> None:
    """Text parts are joined with a newline; absent content is empty, not "None"."""
    assert render(TURNS, {"role": "user", "content": content}, add_generation_prompt=False) == expected + "\n"


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endfor %}",
        "{% for m in messages %}{% set c = m['content'] %}{% for p in c | list %}({{ p.text }}){% endfor %}{% endfor %}",
    ],
)
def test_templates_that_walk_parts_get_parts(source: str) -> None:
    """A string becomes the one part it is."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert render(source, {"role": "user", "content": parts}, USER) == "(a)(b)(hi)"


def test_templates_that_read_the_first_part_get_parts() -> None:
    """Those of pairs do; whatever else they read."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    source = "{% for m in messages %}{{ m.role }}({{ m['content'][0]['text'] }}){% endfor %}"

    assert render(source, {"role": "user", "content": parts}, USER) == "user(a)user(hi)"


def test_templates_that_take_both_get_what_was_sent() -> None:
    """`is string` in the template means that it knows strings too."""
    walk = "{% for p in messages[0].content %}{% endfor %}"
    source = "{{ messages[0].content if messages[0].content is string else 'parts' }}" + walk

    assert render(source) == "hi"
    assert render(source, {"role": "user", "content": [{"type": "text", "text": "a"}]}) == "parts"


def test_a_part_without_text_is_refused() -> None:
    """A picture cannot become text."""
    with pytest.raises(TemplateError, match="content part without text"):
        render(TURNS, {"role": "user", "content": [{"type": "image_url"}]})


def test_developer_is_system_where_the_template_does_not_know_it() -> None:
    """Newer clients speak to older models."""
    developer = {"role": "developer", "content": "x"}

    assert render(TURNS, developer, add_generation_prompt=False) == "<system>x\n"
    assert render("{# developer #}" + TURNS, developer, add_generation_prompt=False) == "<developer>x\n"


CALLS = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"b": 1, "a": 2}', '{"b": 1, "a": 2}'),
        ("", "{}"),
        ('{"cut', '"{\\"cut"'),
        ({"a": 1}, '{"a": 1}'),
        ("[1]", '"[1]"'),
    ],
)
def test_tool_arguments_are_objects_for_the_template(arguments: Any, expected: str) -> None:
    """OpenAI sends them as a string, templates write them as JSON; key order stays."""
    assert render(CALLS, call(arguments)) == expected


WALKS = (
    "{% for call in messages[0].tool_calls %}"
    "{% for k, v in call.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}"
    "{% endfor %}"
)


@pytest.mark.parametrize("arguments", ['{"x', "[]", "1", "null", '"a"', "{} {}", "{" * 200])
def test_a_template_that_walks_arguments_gets_an_object_in_any_case(arguments: str) -> None:
    """Models do write such calls; with one in its history the conversation goes on, beside those that are whole."""
    message = call('{"a": 1}')
    message["tool_calls"] += call(arguments)["tool_calls"]

    assert render(WALKS, message) == f"a=1;malformed_arguments={arguments};"


def test_templates_that_paste_arguments_get_the_text() -> None:
    """What fails with an object is tried with the string the client sent."""
    source = "{{ 'x' + messages[0].tool_calls[0].function.arguments }}"

    assert render(source, call('{"a":1}')) == 'x{"a":1}'


def test_the_first_error_is_told_when_both_ways_fail() -> None:
    """It is the one about what the template expects."""
    with pytest.raises(TemplateError, match=r"^object"):
        render(
            "{{ raise_exception('text' if messages[0].tool_calls[0].function.arguments is string else 'object') }}",
            call("{}"),
        )


NULLS = "{% for m in messages %}{% if m['content'] is not none %}<{{ m['content'] + '>' }}{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (NULLS, "<hi>"),
        (NULLS + "{{ messages[1].tool_calls[0].function.arguments + '!' }}", "<hi>{}!"),
        (NULLS + "{{ 'x' in messages[1].content }}", "<hi><>False"),
        ("{{ messages[1].content }}", ""),
    ],
)
def test_absent_content_is_none_for_templates_that_ask(source: str, expected: str) -> None:
    """They write nothing then, where an empty string would be a turn; templates that do not ask never see none."""
    assert render(source, USER, {**call("{}"), "content": None}) == expected


def test_ids_of_calls_suit_templates_that_count_them() -> None:
    """Older Mistral templates refuse all but nine letters or digits; call and result still agree."""
    source = (
        "{% for m in messages %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('id') }}"
        "{% endif %}{{ c.id }}{% endfor %}{{ m.tool_call_id }} {% endfor %}"
    )
    result = {"role": "tool", "tool_call_id": "call_long_1", "content": "x"}
    asked = {"role": "assistant", "tool_calls": [{"id": "call_long_1", "function": {"name": "f", "arguments": "{}"}}]}
    first, second = render(source, asked, result).split()

    assert first == second
    assert len(first) == 9
    assert render(source, {"role": "tool", "tool_call_id": "abcDEF123", "content": ""}) == "abcDEF123 "


def test_no_calls_is_no_key() -> None:
    """Templates ask `'tool_calls' in message`."""
    assert render("{{ 'tool_calls' in messages[0] }}", {**USER, "tool_calls": []}) == "False"


def test_reasoning_is_replayed_under_the_name_templates_read() -> None:
    """Clients send back either spelling."""
    assert render("{{ messages[0].reasoning_content }}", {**USER, "reasoning": "hm"}) == "hm"


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (TURNS, "The answer", "<user>hi\n<assistant>The answer"),
        (TURNS, "", "<user>hi\n<assistant>"),
        (TURNS.replace("['content']", "['content'] | trim"), " a ", "<user>hi\n<assistant>a "),
        (TURNS, [{"type": "text", "text": "a"}], "<user>hi\n<assistant>a"),
        ("{% for m in messages %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endfor %}", [], "(hi)("),
    ],
)
def test_the_last_message_can_be_continued(source: str, content: Any, expected: str) -> None:
    """The prompt ends exactly where the message does, end-of-turn marks are cut off."""
    assert render(source, USER, {"role": "assistant", "content": content}, continue_final=True) == expected


@pytest.mark.parametrize("source", ["{{ messages | length }}", "{{ raise_exception('no') }}"])
def test_a_message_that_the_template_drops_cannot_be_continued(source: str) -> None:
    """An error is better than a prompt that ends somewhere."""
    with pytest.raises(TemplateError):
        render(source, continue_final=True)


def test_nothing_cannot_be_continued() -> None:
    """An empty conversation has no last message."""
    template = ChatTemplate(TURNS, bos_token=None, eos_token=None)
    with pytest.raises(TemplateError, match="no message"):
        template.render([], continue_final=True)


def test_switches_reach_the_template_but_replace_nothing() -> None:
    """`chat_template_kwargs` come from a client."""
    source = "{{ enable_thinking }}{{ messages | length }}{{ bos_token }}{{ add_generation_prompt }}"
    switches = {
        "enable_thinking": False,
        "messages": [],
        "bos_token": "x",
        "add_generation_prompt": 0,
        "_steps_left": 1,
    }

    assert render(source, variables=switches) == "False1<s>True"


@pytest.mark.parametrize(
    ("source", "tools", "thinking"),
    [
        (TURNS, False, False),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True, False),
        ("{# tools #}", False, False),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}{% for t in tools %}{% endfor %}", True, False),
        ("{% if enable_thinking is defined %}{% endif %}", False, True),
        ("<think>", False, True),
    ],
)
def test_what_a_template_supports_is_read_off_it(source: str, tools: bool, thinking: bool) -> None:
    """A variable that is read, not a word in a comment."""
    template = ChatTemplate(source, bos_token=None, eos_token=None)

    assert (template.supports_tools, template.supports_thinking) == (tools, thinking)


def test_what_a_template_supports_is_told_without_running_any_of_it() -> None:
    """Jinja computes constants when it compiles: this one has 300 MB. A daemon reads the templates of all its files."""
    tracemalloc.start()
    template = ChatTemplate("{{ 'a' | center(300000000) }}{{ tools }}", bos_token=None, eos_token=None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert template.supports_tools
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("source", "tools"),
    [
        ("{% macro m(tools) %}{{ tools }}{% endmacro %}{{ m([]) }}", False),
        ("{% macro m(tools) %}{{ tools }}{% endmacro %}{{ m(tools) }}", True),
        ("{% for tools in messages %}{{ tools }}{% endfor %}", False),
        ("{% for a, tools in messages %}{{ tools }}{% endfor %}", False),
        ("{% for a, tools in messages %}{% endfor %}{{ tools }}", True),
        ("{% for tools in tools %}{% endfor %}", True),
        ("{% set tools = tools or [] %}", True),
        ("{% set tools = [] %}{{ tools }}", False),
        ("{% with tools = tools %}{% endwith %}", True),
        ("{% with tools = 1 %}{{ tools }}{% endwith %}", False),
        ("{% with tools = 1 %}{% endwith %}{{ tools }}", True),
        ("{% call(tools) m() %}{{ tools }}{% endcall %}", False),
        ("{% if my_tools %}{% set tools = my_tools %}{% endif %}{{ tools }}", True),
        ("{% if my_tools %}{% set tools = my_tools %}{% elif tools %}{% endif %}", True),
        ("{% if my_tools %}{% set tools = my_tools %}{% else %}{% set tools = [] %}{% endif %}{{ tools }}", False),
        ("{% for m in messages %}{% set tools = m.tools %}{% endfor %}{{ tools }}", True),
    ],
)
def test_a_name_of_the_template_s_own_is_no_variable(source: str, tools: bool) -> None:
    """Arguments of macros, loops and assignments hide what the caller gives, but for assignments that may not be made: Llama
    3's and Granite 4's templates begin with one."""
    assert ChatTemplate(source, bos_token=None, eos_token=None).supports_tools is tools


@pytest.mark.parametrize(
    "source", ["x" * 1_100_000, "{{ " + "(" * 20_000 + "}}", "{{ " + "9" * 5_000 + " }}", "{% if %}"]
)
def test_a_template_that_cannot_be_read_is_an_error(source: str) -> None:
    """Too long, too deep, with numbers nobody can hold, or wrong."""
    with pytest.raises(TemplateError):
        ChatTemplate(source, bos_token=None, eos_token=None)


def test_the_mark_is_in_no_message() -> None:
    """Even when the client uses private characters."""
    assert unused_character(["\U000f0000", {"\U000f0001": 1}]) == "\U000f0002"


HARMONY = (
    "{% for m in messages %}{% if m.tool_calls is defined and m.content and m.thinking %}"
    "{{ raise_exception('Cannot pass both content and thinking in an assistant message with tool calls!') }}{% endif %}"
    "<{{ m.role }}>{% if 'thinking' in m %}({{ m.thinking }}){% endif %}{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thoughts_are_told_under_the_name_that_a_template_knows(name: str) -> None:
    """gpt-oss's is `thinking`; beside a call it takes either a thought or words, so there they are one thought."""
    thought = {"role": "assistant", "content": "yo", name: "hm"}

    assert render(HARMONY, USER, thought) == "<user>hi<assistant>(hm)yo"
    assert render(HARMONY, USER, {**call("{}"), **thought}) == "<user>hi<assistant>(hm\n\nyo)"
    assert render(HARMONY, USER, {**call("{}"), **thought, "content": None}) == "<user>hi<assistant>(hm)"
