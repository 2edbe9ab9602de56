"""Sessions of real agents that `tests.contract.record` has recorded: two requests of each, their long texts made up."""

import json
import pathlib
import random
from typing import Any

from attrs import frozen

from cortex_gateway.dialects.anthropic.request import decode as decode_anthropic
from cortex_gateway.dialects.dialect import Earlier
from cortex_gateway.dialects.responses.request import decode as decode_responses
from cortex_gateway.dialects.responses.request import read as read_responses

CLIENTS = pathlib.Path(__file__).parent / "clients"
WORDS = (
    "the",
    "file",
    "should",
    "be",
    "read",
    "before",
    "it",
    "is",
    "changed",
    "and",
    "a",
    "command",
    "runs",
    "in",
    "its",
    "place.",
)


@frozen
class Session:
    """`first` and `second` are an agent's request for a turn, and the one with what its command brought."""

    name: str
    first: Any
    second: Any

    @property
    def turns(self) -> str:
        """The field that has the conversation."""
        return "input" if "input" in self.first else "messages"

    def neuron_body(self, body: Any) -> Any:
        """What the gateway asks a neuron for `body`, one of the two."""
        sent = json.dumps(body).encode()
        if self.turns == "input":
            return json.loads(decode_responses(read_responses(sent), Earlier()).neuron_body("demo"))
        if self.name.startswith("claude-"):
            return json.loads(decode_anthropic(sent).neuron_body("demo"))
        return body


def sessions(scale: float = 1.0) -> list[Session]:
    """All that there are, by client and version; their long texts `scale` times as long."""
    return [_session(folder, scale) for folder in sorted(CLIENTS.iterdir()) if folder.is_dir()]


def _session(folder: pathlib.Path, scale: float) -> Session:
    read = (json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ("first", "second"))
    first, more = (_whole(body, scale) for body in read)
    turns = "input" if "input" in first else "messages"
    again = first[turns] if more.pop("keeps") else []
    return Session(folder.name, first, {**first, **more, turns: [*again, *more[turns]]})


def _whole(value: Any, scale: float) -> Any:
    """`value` with texts for the digests in it."""
    if isinstance(value, dict):
        if value.keys() == {"digest", "characters"}:
            return _text(value["digest"], int(scale * value["characters"]))
        return {key: _whole(one, scale) for key, one in value.items()}
    return [_whole(one, scale) for one in value] if isinstance(value, list) else value


def _text(digest: str, characters: int) -> str:
    words = random.Random(digest)
    return " ".join(words.choice(WORDS) for _ in range(characters // 2 + 1))[:characters]
