"""Conversations that a template refuses because of their roles are told in others, and each begins as the one before."""

from typing import Any

import pytest

from neuron_jax.text.errors import TemplateError
from neuron_jax.text.template import ChatTemplate
from neuron_jax.text.turns import one_call_each, with_reminders, without_system

FIRST = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('first only') }}{% endif %}"
NONE = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
TURNS = (
    "{% set ns = namespace(last='') %}{% for m in messages %}"
    "{% if m.role == ns.last %}{{ raise_exception('take turns') }}{% endif %}{% set ns.last = m.role %}"
)
REST = "[{{ m.role }}]{{ m.content }}{% endfor %}"
NOTE = "<system-reminder>\nnote\n</system-reminder>"


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


TALK = [turn("system", "be kind"), turn("user", "hi"), turn("system", "note")]
LATER = [*TALK, turn("assistant", "ho"), turn("tool", "42"), turn("system", "note"), turn("user", "so?")]


def rendered(source: str, messages: list[dict[str, Any]]) -> str:
    return ChatTemplate(source + REST, bos_token=None, eos_token=None).render(messages)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}", "[system]be kind[user]hi[system]note"),
        (FIRST, f"[system]be kind[user]hi\n\n{NOTE}"),
        (NONE, f"[user]be kind\n\nhi\n\n{NOTE}"),
        (FIRST.replace("{% for", TURNS.partition("{% for")[0] + "{% for"), f"[system]be kind[user]hi\n\n{NOTE}"),
    ],
)
def test_a_system_turn_is_told_where_it_stands(source: str, expected: str) -> None:
    """As such wherever the template lets it, else as words of the user's turn; each request begins with the one before."""
    assert rendered(source, TALK) == expected
    assert rendered(source, LATER).startswith(expected)


def test_turns_are_taken_where_a_template_wants_that() -> None:
    """A reminder behind a tool's result is a part of it, and those of the user in a row are one."""
    assert with_reminders(LATER[3:]) == [turn("assistant", "ho"), turn("tool", f"42\n\n{NOTE}"), turn("user", "so?")]
    assert with_reminders([turn("user", "a"), turn("user", "b"), turn("assistant", "c"), turn("system", "note")]) == [
        turn("user", "a\n\nb"),
        turn("assistant", "c"),
        turn("user", NOTE),
    ]


def test_parts_stay_parts() -> None:
    part = {"type": "text", "text": "hi"}

    assert without_system([turn("system", [part]), turn("user", "a"), turn("system", [part, part])]) == [
        turn("user", [part, {"type": "text", "text": "a"}, {"type": "text", "text": NOTE.replace("note", "hi\nhi")}])
    ]
    assert with_reminders([turn("user", None), turn("user", "")]) == [turn("user", "")]


def called(*ids: str, content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": [{"id": id_} for id_ in ids]}


def result(id_: str) -> dict[str, Any]:
    return {"role": "tool", "content": f"of {id_}", "tool_call_id": id_}


def test_calls_side_by_side_are_told_one_after_the_other_where_a_template_takes_one() -> None:
    """Each with its result; those of one call stay as they are, and so does a result of no call."""
    asked = [
        turn("user", "hi"),
        called("a", "b", content="so"),
        result("b"),
        result("a"),
        result("x"),
        called("c"),
        result("c"),
    ]
    told = [called("a", content="so"), result("a"), called("b", content=""), result("b"), result("x"), *asked[5:]]
    one = "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"

    assert one_call_each(asked) == [asked[0], *told]
    assert rendered(one, asked) == "[user]hi[assistant]so[tool]of a[assistant][tool]of b[tool]of x[assistant][tool]of c"
    assert rendered("{% for m in messages %}", asked).startswith("[user]hi[assistant]so[tool]of b[tool]of a")


def test_what_no_order_helps_is_refused_in_the_template_s_first_words() -> None:
    source = "{% for m in messages %}{{ raise_exception(m.role) }}"

    with pytest.raises(TemplateError, match="system"):
        rendered(source, TALK)
