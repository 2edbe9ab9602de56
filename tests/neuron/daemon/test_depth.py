"""JSON that is nested deeply: one limit for all of a body, and the path of what is beyond it."""

import json
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.daemon.fields import decode_object
from neuron_jax.daemon.json_bounds import MAX_DEPTH, deep_path
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.schema import read_chat
from tests.fakes.live_neuron import LiveNeuron, with_neuron

USER = {"role": "user", "content": "hi"}


def nested(levels: int, kind: str = "object") -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value} if kind == "object" else [value]
    return value


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER], **fields}).encode()


def switch(levels: int) -> bytes:
    return chat(chat_template_kwargs=nested(levels - 1))


def tool(levels: int) -> bytes:
    return chat(tools=[{"type": "function", "function": {"name": "f", "parameters": nested(levels - 4)}}])


def calls(arguments: Any) -> bytes:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return chat(messages=[USER, {"role": "assistant", "tool_calls": [call]}])


def arguments_text(levels: int) -> bytes:
    return calls(json.dumps(nested(levels)))


def arguments_object(levels: int) -> bytes:
    return calls(nested(levels - 6))


def unknown_field(levels: int) -> bytes:
    return chat(messages=[{**USER, "x": nested(levels - 3, "list")}])


SWITCH = "chat_template_kwargs.a.a.a.a.a"
PARAMETERS = "tools[0].function.parameters.a.a"
ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("write", "param"),
    [
        (switch, SWITCH),
        (tool, PARAMETERS),
        (arguments_text, ARGUMENTS),
        (arguments_object, ARGUMENTS),
        (unknown_field, "messages[0].x[0][0][0]"),
    ],
)
@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 323, 700])
def test_what_is_nested_too_deeply_is_named(write: Any, param: str, levels: int) -> None:
    """400 with the beginning of the path, at one level more than is read."""
    with pytest.raises(Problem, match="nested too deeply") as raised:
        read_chat(decode_object(write(levels)))

    problem = raised.value
    assert (problem.status, problem.code, problem.param) == (400, "invalid_request_body", param)
    assert str(MAX_DEPTH) in problem.message


@pytest.mark.parametrize("levels", [2_000, 100_000])
def test_what_no_parser_reads_is_refused_as_well(levels: int) -> None:
    """Beyond the interpreter's own limit there is no path to tell, but for a string that holds JSON."""
    with pytest.raises(Problem, match="nested too deeply") as raised:
        read_chat(decode_object(b'{"model":"m","x":' + b"[" * levels + b"]" * levels + b"}"))
    assert raised.value.status == 400
    with pytest.raises(Problem) as raised:
        read_chat(decode_object(calls("[" * levels + "]" * levels)))
    assert raised.value.param == ARGUMENTS


def test_brackets_without_nesting_are_no_depth() -> None:
    """A long list of objects, and a text of brackets that is no JSON."""
    assert read_chat(decode_object(chat(chat_template_kwargs={"x": [{}] * 500}))).chat.variables["x"]
    assert read_chat(decode_object(calls("[" * 500)))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": 1}, None),
        ([[[1]]], "[0][0]"),
        ({"a": [], "b": [{}]}, "b[0]"),
        ({"a": {"b": 1}, "c": {"d": {"e": 1}}}, "c.d"),
    ],
)
def test_the_path_leads_to_the_first_that_is_too_deep(value: Any, path: str | None) -> None:
    """Two levels are allowed here."""
    assert deep_path(value, 2) == path


def test_all_that_may_be_deep_is_rendered(tmp_path: Path) -> None:
    """At the limit everything works: switches, tools and the arguments of calls go through the template."""

    async def use(neuron: LiveNeuron) -> None:
        for write in (switch, tool, arguments_text, arguments_object, unknown_field):
            for levels, status in ((MAX_DEPTH, 200), (MAX_DEPTH + 1, 400), (500, 400)):
                body = json.loads(write(levels))
                answer = await neuron.http.post("/v1/chat/completions", json={**body, "model": "tiny", "max_tokens": 1})
                assert answer.status_code == status, (write.__name__, levels, answer.text)

    with_neuron(tmp_path, use, context=8192)
