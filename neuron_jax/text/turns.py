"""Turns in another order, for templates that refuse the one that was sent; knows messages, no template.

Agents put system turns between the others, and some templates let one stand at the very beginning only, or none at all, or
want user and assistant to take turns. What was said stays where it was said, in words, so that the next request's prompt
begins with this one's.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

Message = Mapping[str, Any]
REMINDER = "<system-reminder>\n{}\n</system-reminder>"
"""As Claude Code itself writes what the user did not say."""


def with_reminders(messages: Sequence[Message]) -> list[Message]:
    """System turns behind the first turn as words of the tool's result or user's turn that they stand next to.

    User's turns in a row are one turn.
    """
    turns: list[Message] = []
    for at, message in enumerate(messages):
        reminds = at > 0 and message["role"] == "system"
        turn = {"role": "user", "content": _reminder(message["content"])} if reminds else message
        before = turns[-1]["role"] if turns else None
        if turn["role"] == "user" and (before == "user" or (before == "tool" and reminds)):
            turns[-1] = {**turns[-1], "content": _joined(turns[-1]["content"], turn["content"])}
        else:
            turns.append(turn)
    return turns


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The same, and a first system turn is the beginning of the user's."""
    first, *rest = messages
    return with_reminders([{**first, "role": "user"} if first["role"] == "system" else first, *rest])


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Calls that stand side by side, one after the other, each with its results: Llama 3's templates take one call a turn."""
    turns: list[Message] = []
    results = list(messages)
    while results:
        message = results.pop(0)
        calls = message.get("tool_calls") or [None]
        if len(calls) == 1:
            turns.append(message)
            continue
        for number, call in enumerate(calls):
            said = message if number == 0 else {"role": message["role"], "content": ""}
            turns.append({**said, "tool_calls": [call]})
            own = [turn for turn in _results(results) if turn.get("tool_call_id") == call.get("id")]
            turns += own
            results = [turn for turn in results if not any(turn is one for one in own)]
    return turns


def _results(messages: Sequence[Message]) -> Iterator[Message]:
    """Those that the messages begin with."""
    return takewhile(lambda turn: turn["role"] == "tool", messages)


def _reminder(content: Any) -> str:
    return REMINDER.format(_text(content))


def _joined(before: Any, after: Any) -> Any:
    """Both texts with an empty line between them; of parts all."""
    if isinstance(before, list) or isinstance(after, list):
        return [*_parts(before), *_parts(after)]
    return "\n\n".join(filter(None, (before, after)))


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []


def _text(content: Any) -> str:
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""
