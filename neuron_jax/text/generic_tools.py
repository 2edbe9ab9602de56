"""Tools for a template that has no place for them: a prompt of ours, and calls and results as plain text in its turns.

Calls are written as Hermes and Qwen write theirs, so the same parser reads them. Pure; must not know tokens or wires.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from neuron_jax.text.calls.table import HERMES
from neuron_jax.text.prompt import Chat

TOOL_CALL_OPEN, TOOL_CALL_CLOSE = HERMES

PROMPT = f"""You may call these functions, one JSON object each:
{{tools}}
To call one, write exactly this and nothing after it:
{TOOL_CALL_OPEN}
{{{{"name": "<name of the function>", "arguments": <a JSON object of its parameters>}}}}
{TOOL_CALL_CLOSE}
The results come back between <tool_response> and </tool_response>. Without need of a function, answer in plain words."""

SYSTEM = ("system", "developer")


def in_words(chat: Chat) -> Chat:
    """`chat` without tools, calls and results of its own: all of them are text. The same tools give the same beginning."""
    turns = _merged([_turn(message) for message in chat.messages])
    if not chat.tools:
        return attrs.evolve(chat, messages=turns)
    described = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in chat.tools)
    prompt = PROMPT.format(tools=described)
    if turns and turns[0]["role"] in SYSTEM:
        first, turns = turns[0], turns[1:]
        turns = [{**first, "content": _joined(_text(first.get("content")), prompt)}, *turns]
    else:
        turns = [{"role": "system", "content": prompt}, *turns]
    return attrs.evolve(chat, messages=turns, tools=None)


def _turn(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """One message in words that any template knows."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    calls = [f"{TOOL_CALL_OPEN}\n{_call(call['function'])}\n{TOOL_CALL_CLOSE}" for call in message["tool_calls"]]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(filter(None, (_text(message.get("content")), *calls)))}


def _merged(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Results that follow each other, and what the user says to them, are one turn: many templates want them to alternate."""
    merged: list[Mapping[str, Any]] = []
    for turn in turns:
        before = merged[-1] if merged else None
        if before is not None and before["role"] == turn["role"] == "user" and _is_result(before):
            merged[-1] = {**before, "content": f"{before['content']}\n{_text(turn.get('content'))}"}
        else:
            merged.append(turn)
    return merged


def _is_result(turn: Mapping[str, Any]) -> bool:
    content = turn["content"]
    return isinstance(content, str) and content.startswith("<tool_response>")


def _call(function: Mapping[str, Any]) -> str:
    """Arguments as they were sent, where they are JSON: the text of a conversation must not change from turn to turn."""
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            json.loads(arguments or "{}")
            written = arguments or "{}"
        except (ValueError, RecursionError):
            written = json.dumps(arguments, ensure_ascii=False)
    else:
        written = json.dumps(arguments or {}, ensure_ascii=False)
    return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {written}}}'


def _joined(*parts: str) -> str:
    return "\n\n".join(filter(None, parts))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""
