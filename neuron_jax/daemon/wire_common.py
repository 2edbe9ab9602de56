"""What chat and completions answers have in common: usage, SSE framing, token texts; pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from neuron_jax.daemon.generation import Chosen, GenerationJob, Quiet, fewer
from neuron_jax.daemon.params_schema import SamplingParams
from neuron_jax.daemon.problems import Problem
from neuron_jax.workers.frames import Progress

HEARTBEAT_LINE = b": keep-alive\n\n"
BEATS = 10
"""Of so many signs of life in a row one is a chunk: some clients only count what they can parse."""
DONE_LINE = b"data: [DONE]\n\n"
_json = msgspec.json.Encoder()


def sse(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + _json.encode(value) + b"\n\n"


def sse_problem(problem: Problem) -> bytes:
    """A failure after the stream has begun; nothing follows it."""
    return sse(problem.envelope())


class Beats:
    """What a client is sent that hears nothing else: comments, and now and then a chunk that says nothing."""

    def __init__(self) -> None:
        self._row = 0

    def broken(self) -> None:
        """Something else was sent."""
        self._row = 0

    def next(self, idle: dict[str, Any], waits: Progress | None = None) -> bytes:
        """`idle` is the chunk; `waits`: for what."""
        self._row += 1
        return progress_line(waits) if self._row % BEATS else sse(idle)


def progress_line(waits: Progress | None) -> bytes:
    """The comment that says what a client waits for, in the shape of a load's progress."""
    return HEARTBEAT_LINE if waits is None else b": progress " + _json.encode(told(waits)) + b"\n\n"


def told(waits: Progress) -> dict[str, Any]:
    return {"phase": waits.phase, "done": waits.done, "total": waits.total, "unit": waits.unit}


def prompt_progress(quiet: Quiet, seconds: float) -> dict[str, Any]:
    """What a chunk says of a prompt under way to who asked for `return_progress`, as llama.cpp has it (its server's README)."""
    waits = quiet.waits
    if waits is None or waits.phase != "prompt":
        return {}
    counts = {"total": waits.total, "cache": quiet.found, "processed": waits.done, "time_ms": round(1e3 * seconds)}
    return {"prompt_progress": counts}


def usage(job: GenerationJob) -> dict[str, Any]:
    """The usage object as it stands now."""
    counts = job.usage
    found: dict[str, Any] = {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": counts.completion,
        "total_tokens": job.prompt_tokens + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }
    if any(encoded.reading.reasoning for encoded in job.encoded):
        found["completion_tokens_details"] = {"reasoning_tokens": counts.reasoning}
    return found


def usage_line(job: GenerationJob) -> bytes:
    """The comment before the first token and before the end: a proxy counts without chunks that nobody asked for."""
    return b": usage " + _json.encode(usage(job)) + b"\n\n"


def envelope(job: GenerationJob, params: SamplingParams, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """One chunk: the stream's head, `choices`, and usage where it was asked for."""
    chunk: dict[str, Any] = {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.model,
        "choices": choices,
    }
    if params.continuous_usage:
        chunk["usage"] = usage(job)
    elif params.include_usage:
        chunk["usage"] = None if choices else usage(job)
    return chunk


def token_text(job: GenerationJob, token: int) -> str:
    """A token as a string; bytes that are no UTF-8 show as U+FFFD."""
    return job.text.tokenizer.piece(token).decode("utf-8", "replace")


class PromptLogprobs:
    """`prompt_logprobs` of one prompt, as vLLM has it (vllm/entrypoints/openai/protocol.py): for each token of the prompt but
    the first one, of which nothing is known, an object by token ids. A rank is told of those that are among the likeliest."""

    def __init__(self, job: GenerationJob) -> None:
        self._job = job
        self._wanted = job.prompt_alternatives is not None
        self._rows: list[dict[str, Any] | None] = [None]

    def add(self, chosen: Sequence[Chosen]) -> None:
        """The prompt's next tokens."""
        self._rows += map(self._row, fewer(tuple(chosen), self._job.prompt_alternatives))

    def told(self) -> dict[str, Any]:
        """The field, where it was asked for."""
        return {"prompt_logprobs": self._rows} if self._wanted else {}

    def _row(self, row: Chosen) -> dict[str, Any]:
        ranks = {other.token: rank for rank, other in enumerate(row.alternatives, 1)}
        known = {row.token: row.logprob} | {other.token: other.logprob for other in row.alternatives}
        return {
            str(token): {"logprob": value, "rank": ranks.get(token), "decoded_token": token_text(self._job, token)}
            for token, value in known.items()
        }
