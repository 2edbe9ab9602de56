"""`cortex doctor` against a live gateway over a neuron that does all that agents rely on, and over ones that lack a thing."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from attrs import define, field

from cortex_gateway.cli import app as cli
from cortex_gateway.cli.doctor.checks import CHECKS
from cortex_gateway.cli.doctor.questions import DIALECTS
from cortex_gateway.placement.snapshot import Limit, ModelConfig
from tests.fakes.live_gateway import live_gateway
from tests.fakes.neuron_double import Answer, NeuronDouble

WINDOW = 8192
CAPITAL = '{"capital": "Paris"}'


@define
class Model(NeuronDouble):
    """Answers as a good neuron does, but for what it `lacks`. A token is a word of the messages."""

    lacks: str = ""
    before: set[str] = field(factory=set)  # the first messages that it has seen

    def next_answer(self) -> Answer:
        body = self.asked[-1].body
        text = json.dumps(body["messages"])
        length = len(text.split())
        if length > WINDOW and self.lacks != "limits":
            return Answer(refusal=(400, overlong(length), {}))
        first = str(body["messages"][0])
        cached = len(first.split()) if first in self.before and self.lacks != "cache" else 0
        self.before.add(first)
        ways: Mapping[str, Answer] = {
            "tools": Answer(deltas=tuple({"tool_calls": [call]} for call in CALL), finish="tool_calls"),
            "response_format": Answer(deltas=({"content": CAPITAL},)),
        }
        kind = next(
            (kind for kind in ways if kind in body and kind.replace("response_format", "json") != self.lacks), ""
        )
        return ways[kind] if kind else Answer(deltas=self.said(), prompt=length, cached=cached)

    def said(self) -> tuple[Mapping[str, Any], ...]:
        return ({"content": " "},) if self.lacks == "chat" else ({"content": "Hel"}, {"content": "lo"})


HEAD = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "tell_capital", "arguments": ""}}
CALL = (HEAD, {"index": 0, "function": {"arguments": CAPITAL}})


def overlong(length: int) -> bytes:
    words = f"This model's maximum context length is {WINDOW} tokens. {length} tokens were sent."
    known = {"type": "invalid_request_error", "code": "context_length_exceeded", "prompt_len": length, "max": WINDOW}
    return msgspec.json.encode({"error": {"message": words, "param": "messages", **known}})


def examine(model: NeuronDouble, *words: str) -> int:
    models = (ModelConfig(id="demo", limit=Limit(context=WINDOW)),)
    with live_gateway({"double": model}, models=models) as gateway:
        return cli.run(["doctor", *words, "--endpoint", gateway.url])


def failed(out: str) -> Iterator[tuple[str, str]]:
    for finding in json.loads(out)["findings"]:
        if not finding["holds"]:
            assert finding["remedy"]
            yield finding["dialect"], finding["check"]


def test_a_healthy_model_passes(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each thing in each dialect; exit code 0."""
    code = examine(Model())

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["✓", it.name, check] for it in DIALECTS for check in CHECKS]
    assert code == 0
    assert any("prompt is too long: " in line for line in lines)


@pytest.mark.parametrize("lack", ["chat", "tools", "json", "cache", "limits"])
def test_what_is_lacking_is_told_with_what_to_do(lack: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In every dialect, and nothing else is. Exit code 1."""
    code = examine(Model(lacks=lack), "--json")

    assert set(failed(capsys.readouterr().out)) == {(dialect.name, lack) for dialect in DIALECTS}
    assert code == 1


def test_a_stream_that_is_cut_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    cut = NeuronDouble(
        answers=[Answer(error_after=(1, {"message": "the engine died", "type": "server_error", "code": None}))]
    )

    code = examine(cut)

    out = capsys.readouterr().out
    streams = [line for line in out.splitlines() if "streaming" in line and "✗" in line]
    assert len(streams) == len(DIALECTS)
    assert all("the engine died" in line for line in streams)
    assert "turn its buffering off" in out
    assert code == 1


def test_an_unknown_model_is_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert examine(Model(), "--model", "dmo") == 1

    assert "did you mean 'demo'?" in capsys.readouterr().err
