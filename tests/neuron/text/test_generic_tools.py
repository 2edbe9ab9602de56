"""Tools for templates that have no place for them: everything is words, the same every time."""

from typing import Any

from neuron_jax.text.formats import tool_parser
from neuron_jax.text.generic_tools import in_words
from neuron_jax.text.pieces import ToolArguments, ToolStart
from neuron_jax.text.prompt import Chat

TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}},
}
USER = {"role": "user", "content": "hi"}


def called(arguments: Any, content: str | None = None) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def test_tools_are_told_of_behind_the_system_prompt() -> None:
    """In the order of their keys; whoever has no system prompt gets one."""
    told = in_words(Chat([{"role": "system", "content": "Be brief."}, USER], tools=[TOOL]))
    alone = in_words(Chat([USER], tools=[TOOL]))

    assert told.tools is None
    assert told.messages[0]["content"].startswith("Be brief.\n\nYou may call")
    assert '"properties": {"b": {}, "a": {}}' in told.messages[0]["content"]
    assert [message["role"] for message in alone.messages] == ["system", "user"]


def test_a_call_that_is_replayed_is_what_the_parser_reads() -> None:
    turn = in_words(Chat([USER, called('{"b":1}', "I look.")], tools=[TOOL])).messages[-1]
    parser = tool_parser("hermes", "c")
    pieces = [*parser.feed(turn["content"]), *parser.close()]

    assert "tool_calls" not in turn
    assert turn["content"] == 'I look.\n<tool_call>\n{"name": "look", "arguments": {"b":1}}\n</tool_call>'
    assert [type(piece) for piece in pieces][1:3] == [ToolStart, ToolArguments]


def test_arguments_of_every_shape_are_replayed() -> None:
    shown = [in_words(Chat([called(sent)])).messages[0]["content"] for sent in ({"b": 1}, "", None, "no json")]

    assert [text.splitlines()[1] for text in shown] == [
        '{"name": "look", "arguments": {"b": 1}}',
        '{"name": "look", "arguments": {}}',
        '{"name": "look", "arguments": {}}',
        '{"name": "look", "arguments": "no json"}',
    ]


def test_results_and_what_follows_are_one_turn_of_the_user() -> None:
    results = [
        {"role": "tool", "content": part, "tool_call_id": "1"} for part in ("one", [{"type": "text", "text": "two"}])
    ]
    messages = in_words(Chat([USER, called("{}"), *results, {"role": "user", "content": "and?"}])).messages

    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[2]["content"] == (
        "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>\nand?"
    )


def test_a_chat_without_any_of_it_stays_as_it_is() -> None:
    chat = Chat([USER, {"role": "assistant", "content": "so"}, USER])

    assert in_words(chat).messages == chat.messages
