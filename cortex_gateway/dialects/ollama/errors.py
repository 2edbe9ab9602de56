"""Ollama's error object, HTTP body and last line of a stream; knows failures, not where they come from.

Source: ollama/ollama docs/api/errors.mdx: `{"error": "<words>"}`, in a stream as a line of its own.
"""

import msgspec

from cortex_gateway.dialects.failure import Failure


def body(failure: Failure) -> bytes:
    """`{"error": "…"}`."""
    return msgspec.json.encode({"error": message(failure)})


def line(failure: Failure) -> bytes:
    """The last line of a stream that failed; none with `done: true` follows it."""
    return body(failure) + b"\n"


def message(failure: Failure) -> str:
    """The words; clients look for Ollama's where a model is missing."""
    if failure.code == "missing_model_field":
        return "model is required"
    if failure.code == "model_not_found":
        words = failure.message.removeprefix("The ")
        return words.replace(" does not exist.", " not found.", 1)
    return failure.message
