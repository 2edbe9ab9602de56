"""Sessions of real agents that `tests.contract.record` has recorded: two requests of each, their long texts made up."""

import json
import pathlib
import random
from typing import Any

from attrs import frozen

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


def sessions() -> list[Session]:
    """All that there are, by client and version."""
    return [_session(folder) for folder in sorted(CLIENTS.iterdir()) if folder.is_dir()]


def session(agent: str) -> Session:
    """The newest of `agent`."""
    return [one for one in sessions() if one.name.startswith(f"{agent}-")][-1]


def _session(folder: pathlib.Path) -> Session:
    first, more = (_whole(json.loads((folder / f"{name}.json").read_text("utf-8"))) for name in ("first", "second"))
    turns = "input" if "input" in first else "messages"
    again = first[turns] if more.pop("keeps") else []
    return Session(folder.name, first, {**first, **more, turns: [*again, *more[turns]]})


def _whole(value: Any) -> Any:
    """`value` with texts for the digests in it."""
    if isinstance(value, dict):
        if value.keys() == {"digest", "characters"}:
            return _text(value["digest"], value["characters"])
        return {key: _whole(one) for key, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value


def _text(digest: str, characters: int) -> str:
    words = random.Random(digest)
    return " ".join(words.choice(WORDS) for _ in range(characters // 2 + 1))[:characters]
