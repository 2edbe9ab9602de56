"""Neutral events as the lines of an Ollama stream, a JSON object each; knows their order and shapes, not when they are sent.

Source: ollama/ollama docs/api/streaming.mdx (application/x-ndjson).
"""

from typing import Any

import msgspec

from cortex_gateway.dialects.dialect import AnswerId, Progress
from cortex_gateway.dialects.events import Event, Finish, Reasoning, Start, Text
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.grammar import Grammar
from cortex_gateway.dialects.ollama import errors
from cortex_gateway.dialects.ollama.response import CallReader, Said, ending, head, told


class LineEncoder:
    """`dialect.Encoder` of one stream."""

    def __init__(self, said: Said, *, model: str, identity: AnswerId) -> None:
        self._said = said
        self._model = model
        self._identity = identity
        self._grammar = Grammar()
        self._calls = CallReader()
        self._first: float | None = None

    def feed(self, event: Event) -> bytes:
        """The lines of `event`. Raises GrammarError when it cannot come now."""
        self._grammar.feed(event)
        calls = self._calls.feed(event)
        before = self._piece(calls=calls) if calls else b""
        match event:
            case Text(text, logprobs):
                return before + self._line(self._said(text), {**told(logprobs), "done": False})
            case Reasoning(text):
                return before + self._piece(thinking=text)
            case Start():
                self._first = self._identity.timing().elapsed
            case Finish():
                return before + self._line(self._said(), ending(event, self._identity.timing(), self._first))
        return before

    def keep_alive(self, waits: Progress | None) -> bytes:
        """A piece with nothing in it. Every client reads each line as an object, so an empty line would be an error.

        What is waited for is told under the names that Ollama has in the streams of /api/pull.
        """
        told = {"status": waits.phase, "completed": waits.done, "total": waits.total} if waits else {}
        return self._line(self._said(), {**told, "done": False})

    def fail(self, failure: Failure) -> bytes:
        """The error that ends the stream, wherever it stands."""
        return errors.line(failure)

    def _piece(self, *args: Any, **kwargs: Any) -> bytes:
        return self._line(self._said(*args, **kwargs), {"done": False})

    def _line(self, said: dict[str, Any], rest: dict[str, Any]) -> bytes:
        return msgspec.json.encode({**head(self._model, self._identity), **said, **rest}) + b"\n"
