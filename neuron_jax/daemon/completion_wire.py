"""Neutral events → OpenAI completions answers, streamed or not; pure, must not know engines or HTTP."""

import codecs
from collections.abc import Container, Sequence
from typing import Any

from neuron_jax.daemon.generation import Admitted, Chosen, Ended, Event, GenerationJob, Grown, Recited, fewer
from neuron_jax.daemon.params_schema import SamplingParams
from neuron_jax.daemon.wire_common import PromptLogprobs, envelope, usage
from neuron_jax.text.pieces import Piece, Text

OBJECT = "text_completion"


class CompletionStream:
    """Feed it events; every chunk it gives is one `data:` line."""

    def __init__(self, job: GenerationJob, params: SamplingParams) -> None:
        self._job = job
        self._params = params
        self._logprobs = [_Logprobs(job, index) for index in range(len(job.submits))]

    def feed(self, event: Event) -> list[dict[str, Any]]:
        """The chunks of one event."""
        match event:
            case Admitted():
                submits = self._job.submits  # a prompt that is recited is told when it has been
                told = [(index, echo) for index, echo in enumerate(self._job.echoes) if not submits[index].begins]
                return [self._chunk(index, echo) for index, echo in told if echo]
            case Recited(index, chosen, whole):
                self._logprobs[index].recite(chosen)
                return [self._chunk(index, self._job.echoes[index])] if whole else []
            case Grown(index, pieces, chosen):
                self._logprobs[index].add(chosen)
                text = text_of(pieces)
                return [self._chunk(index, text)] if text else []
            case Ended(index, finish, stop):
                return [self._chunk(index, "", finish=finish, stop=stop)]
        return []

    def idle(self) -> dict[str, Any]:
        """A chunk that says nothing."""
        return envelope(self._job, self._params, OBJECT, [{"index": 0, "text": "", "finish_reason": None}])

    def close(self) -> list[dict[str, Any]]:
        """The chunk after the last choice ended: usage, where it was asked for."""
        return [envelope(self._job, self._params, OBJECT, [])] if self._params.include_usage else []

    def _chunk(
        self, index: int, text: str, *, finish: str | None = None, stop: str | int | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs[index].take(),
            "finish_reason": finish,
        }
        if finish is not None:
            choice["stop_reason"] = stop
        return envelope(self._job, self._params, OBJECT, [choice])


class CompletionAnswer:
    """Feed it events; `body` is the non-streaming answer."""

    def __init__(self, job: GenerationJob) -> None:
        self._job = job
        self._texts = list(job.echoes) or [""] * len(job.submits)
        self._logprobs = [_Logprobs(job, index) for index in range(len(job.submits))]
        self._prompts = [PromptLogprobs(job) for _ in job.submits]
        self._ends: dict[int, Ended] = {}

    def feed(self, event: Event) -> None:
        """Adds one event."""
        match event:
            case Recited(index, chosen):
                self._prompts[index].add(chosen)
                self._logprobs[index].recite(chosen)
            case Grown(index, pieces, chosen):
                self._texts[index] += text_of(pieces)
                self._logprobs[index].add(chosen)
            case Ended(index):
                self._ends[index] = event

    def body(self, params: SamplingParams) -> dict[str, Any]:
        """The answer."""
        return {
            "id": self._job.id,
            "object": OBJECT,
            "created": self._job.created,
            "model": params.model,
            "choices": [self._choice(index, at, params) for at, index in enumerate(self._told())],
            "usage": usage(self._job),
        }

    def _told(self) -> Sequence[int]:
        """The choices that the client sees, the likeliest of each prompt first where only some are."""
        count, told = len(self._texts), self._job.told
        if told is None:
            return range(count)
        each = next((at for at in range(1, count) if self._job.encoded[at] is not self._job.encoded[0]), count)
        prompts = [range(first, first + each) for first in range(0, count, each)]
        return [at for prompt in prompts for at in sorted(prompt, key=self._likelihood, reverse=True)[:told]]

    def _likelihood(self, index: int) -> float:
        return self._logprobs[index].mean

    def _choice(self, index: int, at: int, params: SamplingParams) -> dict[str, Any]:
        return {
            "index": at,
            "text": self._texts[index],
            "logprobs": self._logprobs[index].take() if params.logprobs is not None else None,
            "finish_reason": self._ends[index].finish,
            "stop_reason": self._ends[index].stop,
            **self._prompts[index].told(),
        }


class _Logprobs:
    """Log-probabilities of one choice that are not sent yet; knows how many characters came before."""

    def __init__(self, job: GenerationJob, index: int) -> None:
        self._job = job
        # A prompt that is told begins with a token of which nothing is known.
        self._pending = [Chosen(job.submits[index].prompt[0], None, ())] if job.recites else []
        self._recited = len(self._pending)
        self._offset = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def mean(self) -> float:
        """Of the answer's tokens, where none was sent yet."""
        own = [row.logprob or 0.0 for row in self._pending[self._recited :]]
        return sum(own) / max(1, len(own))

    def recite(self, chosen: Sequence[Chosen]) -> None:
        """Tokens of the prompt, where they are told beside the answer's."""
        if self._job.recites:
            self._recited += len(chosen)
            self.add(fewer(tuple(chosen), self._job.alternatives))

    def add(self, chosen: Sequence[Chosen]) -> None:
        self._pending += chosen

    def take(self) -> dict[str, Any] | None:
        """The `logprobs` object of everything added since the last call, or None."""
        if not self._pending:
            return None
        rows, self._pending = self._pending, []
        return {
            "tokens": [self._name(row.token) for row in rows],
            "token_logprobs": [row.logprob for row in rows],
            "top_logprobs": [self._alternatives(row) for row in rows],
            "text_offset": [self._advance(row.token) for row in rows],
        }

    def _alternatives(self, row: Chosen) -> dict[str, float] | None:
        """The chosen one under the name that `tokens` gives it, and the likeliest. Where several stand for the same text,
        each has its entry."""
        if row.logprob is None:
            return None
        known = {row.token: row.logprob} | {other.token: other.logprob for other in row.alternatives}
        ranked: dict[str, float] = {}
        for token, logprob in known.items():
            ranked[self._free_name(token, ranked)] = logprob
        return ranked

    def _free_name(self, token: int, taken: Container[str]) -> str:
        names = (self._name(token), self._bytes(token), f"token:{token}")
        return next(name for name in names if name not in taken)

    def _name(self, token: int) -> str:
        """Its text, or as OpenAI writes it its bytes, where they are a part of a character."""
        try:
            return self._piece(token).decode()
        except UnicodeDecodeError:
            return self._bytes(token)

    def _bytes(self, token: int) -> str:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._piece(token))

    def _piece(self, token: int, *, skip_special: bool = False) -> bytes:
        return self._job.text.tokenizer.piece(token, skip_special=skip_special)

    def _advance(self, token: int) -> int:
        """Where the token's text begins, in characters of the answer, in which special tokens have none."""
        at = self._offset
        self._offset += len(self._utf8.decode(self._piece(token, skip_special=True)))
        return at


def text_of(pieces: Sequence[Piece]) -> str:
    """A raw completion has no parsers, so its pieces are text."""
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))
