"""The conversation: what is remembered, what the keys do, what a broken answer leaves behind."""

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from rich.console import Console

from cortex_gateway.cli.api import Api, CommandError
from cortex_gateway.cli.chat import ChatReply, Talk, summary


def event(**delta: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n"


USAGE = 'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
DONE = "data: [DONE]\n\n"


class Wire(httpx.BaseTransport):
    """Answers with the scripted events; an exception among them is raised where it stands."""

    def __init__(self, *answers: Sequence[str | BaseException]) -> None:
        self.answers = list(answers)
        self.asked: list[list[dict[str, str]]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(json.loads(request.read())["messages"])
        return httpx.Response(200, stream=Script(self.answers.pop(0)))


class Script(httpx.SyncByteStream):
    def __init__(self, events: Sequence[str | BaseException]) -> None:
        self.events = events

    def __iter__(self) -> Iterator[bytes]:
        for each in self.events:
            if isinstance(each, BaseException):
                raise each
            yield each.encode()


def talk(wire: Wire, *lines: str | BaseException) -> str:
    """What a conversation with these lines shows."""
    typed = iter([*lines, EOFError()])

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    out = Console(file=io.StringIO(), width=200)
    chat = Talk(api=Api("http://gateway", wire), model="m", out=out, history=[{"role": "system", "content": "S"}])
    chat.talk(read)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def contents(asked: list[dict[str, str]]) -> list[str]:
    return [turn["content"] for turn in asked]


def test_the_conversation_is_remembered() -> None:
    """The second question carries the first one and its answer."""
    wire = Wire([": hold on\n\n", event(content="Par"), event(content="is"), USAGE, DONE], [event(content="2"), DONE])

    shown = talk(wire, "one", " ", "two")

    assert contents(wire.asked[1]) == ["S", "one", "Paris", "two"]
    assert "Paris\n2 tokens" in shown


@pytest.mark.parametrize("ending", ["/quit", "/exit", KeyboardInterrupt(), EOFError()])
def test_it_ends_when_told(ending: Any) -> None:
    """Nothing more is asked."""
    wire = Wire([event(content="a"), DONE])

    talk(wire, "one", ending, "two")

    assert len(wire.asked) == 1


def test_clear_forgets_all_but_the_system_message() -> None:
    """A fresh conversation with the same rules."""
    wire = Wire([event(content="a"), DONE], [event(content="b"), DONE])

    talk(wire, "one", "/clear", "two")

    assert contents(wire.asked[1]) == ["S", "two"]


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said() -> None:
    """The conversation goes on."""
    wire = Wire([event(content="half"), KeyboardInterrupt()], [event(content="b"), DONE])

    shown = talk(wire, "one", "two")

    assert contents(wire.asked[1]) == ["S", "one", "half", "two"]
    assert "stopped" in shown


def test_a_terminal_shows_a_sign_of_life_until_the_first_word() -> None:
    """A cold load may take minutes; the answer stands alone afterwards."""
    wire = Wire([": hold on\n\n", event(content="Par"), event(content="is"), USAGE, DONE])
    out = Console(file=io.StringIO(), force_terminal=True, width=80)

    Talk(api=Api("http://gateway", wire), model="m", out=out).ask("one")

    assert isinstance(out.file, io.StringIO)
    before, after = out.file.getvalue().split("Par")
    assert "waiting for m" in before
    assert (after.strip(), before.endswith("\x1b[2K")) == ("is", True)


def test_what_is_waited_for_is_shown() -> None:
    """On a terminal, as far as it is told."""
    told = ': progress {"phase":"prompt","done":7,"total":9,"unit":"tokens"}\n\n'
    out = Console(file=io.StringIO(), force_terminal=True, width=100)
    wire = Wire([told, event(content="Paris"), USAGE, DONE])
    Talk(api=Api("http://gateway", wire), model="m", out=out).ask("one")

    assert isinstance(out.file, io.StringIO)
    assert "waiting for m: reading the prompt 7/9 tokens" in out.file.getvalue()


def test_an_error_midway_is_an_error() -> None:
    """Not an answer that merely ends; and the question is not asked again with the next one."""
    wire = Wire([event(content="half"), 'data: {"error": {"message": "engine died"}}\n\n'])
    chat = Talk(api=Api("http://gateway", wire), model="m", out=Console(file=io.StringIO()))

    with pytest.raises(CommandError, match="engine died"):
        chat.ask("one")

    assert chat.history == []


def test_a_broken_line_is_an_error() -> None:
    """In one line."""
    wire = Wire([event(content="half"), httpx.ReadError("connection reset")])
    chat = Talk(api=Api("http://gateway", wire), model="m", out=Console(file=io.StringIO()))

    with pytest.raises(CommandError, match="broke off: connection reset"):
        chat.ask("one")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ChatReply(text="x"), ""),
        (ChatReply(text="x", tokens=1), "1 token"),
        (ChatReply(text="x", tokens=8, tokens_per_second=42.12), "8 tokens, 42.1 tokens/s"),
        (ChatReply(text="x", tokens=2, stopped=True), "2 tokens, stopped"),
    ],
)
def test_summary(answer: ChatReply, said: str) -> None:
    """What is known of an answer, in a few words."""
    assert summary(answer) == said
