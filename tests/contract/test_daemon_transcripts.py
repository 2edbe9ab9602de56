"""The neuron's half of the wire between gateway and neuron: the real daemon answers as the transcripts say it does.

Its model is the tiny one, a token of which is a byte, and its engine is the double, which is told in the prompt what to
write: so max_tokens is set anew, and numbers and the cuts between chunks are not compared. All else is: the events in
their order, the fields of each in their order, and every text once its parts are joined.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron

CASES = sorted(folder for folder in (pathlib.Path(__file__).parent / "transcripts").iterdir() if folder.is_dir())
OF_THE_STREAM = ("id", "created", "model", "message")  # differ from stream to stream; `message` is for people
Json = dict[str, Any]


def read(stream: str) -> list[Any]:
    """Every event and the usage comment, parts of one text joined; other comments only keep the connection alive."""
    found: list[Any] = []
    for block in stream.split("\n\n"):
        if block.startswith("data: {"):
            chunk = json.loads(block[6:])
            if not (found and joined(found[-1], chunk)):
                found.append(chunk)
        elif block.startswith(": usage "):
            found.append({"usage comment": json.loads(block[8:])})
        elif block.startswith("data: "):
            found.append(block)
    return found


def joined(before: Any, chunk: Json) -> bool:
    """Adds the text of `chunk` to the chunk before it, where it goes on with the same thing."""
    last, part = delta(before), delta(chunk)
    if "tool_calls" in last and "tool_calls" in part:
        return more_arguments(last["tool_calls"][0], part["tool_calls"][0])
    if not part or "role" in last or list(last) != list(part):
        return False
    for key, text in part.items():
        last[key] += text
    return True


def more_arguments(call: Json, part: Json) -> bool:
    if list(part) != ["index", "function"] or list(part["function"]) != ["arguments"]:
        return False
    assert part["index"] == call["index"]
    call["function"]["arguments"] += part["function"]["arguments"]
    return True


def delta(chunk: Any) -> Json:
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    found: Json = choices[0]["delta"] if choices else {}
    return found


def shape(value: Any, key: str = "") -> Any:
    """`value` without its numbers and without what is a stream's own; arguments as the JSON they are."""
    if isinstance(value, Mapping):
        return [(name, shape(item, name)) for name, item in value.items()]
    if isinstance(value, list):
        return [shape(item) for item in value]
    if key == "arguments":
        return json.loads(value or "{}")
    return type(value).__name__ if key in OF_THE_STREAM or type(value) is int else value


def written(events: Iterable[Any]) -> str:
    """What a model writes for the daemon to make these events of it."""
    deltas = [delta(event) for event in events]
    thought = "".join(part.get("reasoning", "") for part in deltas)
    text = "".join(part.get("content", "") for part in deltas)
    calls = [part["tool_calls"][0]["function"] for part in deltas if "tool_calls" in part]
    stops = [
        choice.get("stop_reason") for event in events if isinstance(event, dict) for choice in event.get("choices", ())
    ]
    envelopes = "".join(
        f'<tool_call>{{"name":"{call["name"]}","arguments":{call["arguments"] or "{}"}}}</tool_call>' for call in calls
    )
    return (f"{thought}</think>" if thought else "") + text + envelopes + "".join(stop for stop in stops if stop)


def request(case: pathlib.Path, events: list[Any]) -> Json:
    """The transcript's own request; the user's turn says what the double shall write, and where it shall die."""
    asked: Json = json.loads((case / "neuron.json").read_bytes())
    text = written(events)
    size = len(text.encode())
    user = next(message for message in asked["messages"] if message["role"] == "user")
    user["content"] += f"[[say {text}]]" + ("" if events[-1] == "data: [DONE]" else f"[[die {size}]]")
    cut = any('"finish_reason": "length"' in json.dumps(event) for event in events)
    return {**asked, "model": MODEL, "max_tokens": size if cut else 10 * size}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_daemon_says_what_the_transcript_says(case: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Event by event, field by field."""
    expected = read((case / "neuron.sse").read_text())

    async def use(neuron: LiveNeuron) -> str:
        answer = await neuron.http.post("/v1/chat/completions", json=request(case, expected))
        assert answer.status_code == 200, answer.text
        return answer.text

    thinking = any("reasoning" in delta(event) for event in expected)
    got = read(with_neuron(tmp_path, use, thinking=thinking))

    assert shape(got) == shape(expected)
    heads = {tuple(event.get(key) for key in ("id", "created", "model")) for event in got if "choices" in event}
    assert len(heads) == 1
    for event in got:
        usage = event.get("usage", event.get("usage comment")) if isinstance(event, dict) else None
        assert usage is None or usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
