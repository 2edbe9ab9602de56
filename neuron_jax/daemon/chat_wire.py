"""Neutral events → OpenAI chat answers, streamed or not; pure, must not know engines or HTTP."""

from collections.abc import Sequence
from typing import Any

from neuron_jax.daemon.generation import Admitted, Chosen, Ended, Event, GenerationJob, Grown, Recited
from neuron_jax.daemon.params_schema import SamplingParams
from neuron_jax.daemon.wire_common import PromptLogprobs, envelope, token_text, usage
from neuron_jax.text.pieces import Piece, Reasoning, Text, ToolArguments, ToolEnd, ToolStart

CHUNK = "chat.completion.chunk"


class ChatStream:
    """Feed it events; every chunk it gives is one `data:` line."""

    def __init__(self, job: GenerationJob, params: SamplingParams) -> None:
        self._job = job
        self._params = params
        # Tokens whose text is still held back: their log-probabilities go out with the next chunk of their choice.
        self._pending: list[list[Chosen]] = [[] for _ in job.submits]

    def feed(self, event: Event) -> list[dict[str, Any]]:
        """The chunks of one event."""
        match event:
            case Admitted():
                role = {"role": "assistant", "content": ""}
                return [self._chunk(index, role) for index in range(len(self._job.submits))]
            case Grown(index, pieces, chosen):
                self._pending[index] += chosen
                shown = [
                    piece for piece in pieces if not (self._params.hides_thoughts and isinstance(piece, Reasoning))
                ]
                return [self._chunk(index, delta) for piece in shown for delta in deltas(piece)]
            case Ended(index, finish, stop):
                return [self._chunk(index, {}, finish=finish, stop=stop)]
        return []

    def idle(self) -> dict[str, Any]:
        """A chunk that says nothing."""
        return envelope(self._job, self._params, CHUNK, [{"index": 0, "delta": {}, "finish_reason": None}])

    def close(self) -> list[dict[str, Any]]:
        """The chunk after the last choice ended: usage, where it was asked for."""
        return [envelope(self._job, self._params, CHUNK, [])] if self._params.include_usage else []

    def _chunk(
        self, index: int, delta: dict[str, Any], *, finish: str | None = None, stop: str | int | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if self._pending[index]:
            choice["logprobs"] = chat_logprobs(self._job, self._pending[index])
            self._pending[index] = []
        if finish is not None:
            choice["stop_reason"] = stop
        return envelope(self._job, self._params, CHUNK, [choice])


class ChatAnswer:
    """Feed it events; `body` is the non-streaming answer."""

    def __init__(self, job: GenerationJob) -> None:
        self._job = job
        self._choices = [_Choice() for _ in job.submits]
        self._prompt = PromptLogprobs(job)

    def feed(self, event: Event) -> None:
        """Adds one event."""
        match event:
            case Recited(_, chosen):
                self._prompt.add(chosen)
            case Grown(index, pieces, chosen):
                self._choices[index].grow(pieces, chosen)
            case Ended(index, finish, stop):
                self._choices[index].finish, self._choices[index].stop = finish, stop

    def body(self, params: SamplingParams) -> dict[str, Any]:
        """The answer."""
        wanted, hides = params.logprobs is not None, params.hides_thoughts
        return {
            "id": self._job.id,
            "object": "chat.completion",
            "created": self._job.created,
            "model": self._job.model,
            "choices": [
                choice.body(self._job, index, logprobs=wanted, hides=hides)
                for index, choice in enumerate(self._choices)
            ],
            "usage": usage(self._job),
            **self._prompt.told(),
        }


class _Choice:
    def __init__(self) -> None:
        self.finish = ""
        self.stop: str | int | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._chosen: list[Chosen] = []

    def grow(self, pieces: Sequence[Piece], chosen: Sequence[Chosen]) -> None:
        self._chosen += chosen
        for piece in pieces:
            self._add(piece)

    def body(self, job: GenerationJob, index: int, *, logprobs: bool, hides: bool) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(hides=hides),
            "logprobs": chat_logprobs(job, self._chosen) if logprobs else None,
            "finish_reason": self.finish,
            "stop_reason": self.stop,
        }

    def _add(self, piece: Piece) -> None:
        match piece:
            case Text(text):
                self._text.append(text)
            case Reasoning(text):
                self._reasoning.append(text)
            case ToolStart(_, id_, name):
                self._calls.append({"id": id_, "type": "function", "function": {"name": name, "arguments": ""}})
            case ToolArguments(index, text):
                self._calls[index]["function"]["arguments"] += text

    def _message(self, *, hides: bool) -> dict[str, Any]:
        text = "".join(self._text)
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if self._calls else "")}
        if self._reasoning and not hides:
            message["reasoning_content"] = message["reasoning"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = self._calls
        return message


def deltas(piece: Piece) -> list[dict[str, Any]]:
    """What a piece adds to the message; the end of a call adds nothing."""
    match piece:
        case Text(text):
            return [{"content": text}]
        case Reasoning(text):
            return [{"reasoning_content": text, "reasoning": text}]
        case ToolStart(index, id_, name):
            function = {"name": name, "arguments": ""}
            return [{"tool_calls": [{"index": index, "id": id_, "type": "function", "function": function}]}]
        case ToolArguments(index, text):
            return [{"tool_calls": [{"index": index, "function": {"arguments": text}}]}]
        case ToolEnd():
            return []


def chat_logprobs(job: GenerationJob, chosen: Sequence[Chosen]) -> dict[str, Any]:
    """The `logprobs` object of a chat choice."""
    rows = [
        {
            **_row(job, item.token, item.logprob),
            "top_logprobs": [_row(job, other.token, other.logprob) for other in item.alternatives],
        }
        for item in chosen
    ]
    return {"content": rows, "refusal": None}


def _row(job: GenerationJob, token: int, logprob: float | None) -> dict[str, Any]:
    piece = job.text.tokenizer.piece(token)
    return {"token": token_text(job, token), "logprob": logprob, "bytes": list(piece)}
