"""/api/embed and the older /api/embeddings over a neuron's /v1/embeddings; knows both shapes, neither routing nor HTTP.

Source: ollama/ollama api/types.go (EmbedRequest, EmbedResponse, EmbeddingRequest) and server/routes.go, as of August 2026.
Vectors have length 1 on /api/embed, and texts that are too long are cut unless `truncate` is false. The options of Ollama's
runner, `keep_alive` and unknown fields are tolerated, as on all routes.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from cortex_gateway.dialects.chat import ChatUsage
from cortex_gateway.dialects.dialect import AnswerId, Decoded, NonStreamingAnswer, Ready
from cortex_gateway.dialects.events import Usage
from cortex_gateway.dialects.failure import malformed
from cortex_gateway.dialects.fields import Json, array, body, flag, integer, kind, model, refused, text
from cortex_gateway.dialects.openai.relay import StreamRelay

EMBEDDINGS = "/v1/embeddings"
Shape = Callable[[list[Raw], Usage, AnswerId], dict[str, Any]]


class _Vector(Struct):
    embedding: Raw


class _Vectors(Struct):
    data: list[_Vector]
    usage: ChatUsage | None = None


def embed(raw: bytes) -> Decoded | Ready:
    """Read a body of /api/embed. Raises RefusedError."""
    top = body(raw)
    named, inputs = model(top), _inputs(top.get("input"))
    truncate = True if top.get("truncate") is None else flag(top["truncate"], "truncate")
    fields = {"input": inputs, "normalize": True, **({"truncate_prompt_tokens": -1} if truncate else {})}
    if top.get("dimensions"):
        fields["dimensions"] = integer(top["dimensions"], "dimensions")

    def shaped(vectors: list[Raw], usage: Usage, identity: AnswerId) -> dict[str, Any]:
        timing = identity.timing()
        return {
            "model": named,
            "embeddings": vectors,
            "total_duration": round(timing.elapsed * 1e9),
            "load_duration": round(timing.waited * 1e9),
            "prompt_eval_count": usage.prompt,
        }

    return _decoded(named, fields, shaped)


def embeddings(raw: bytes) -> Decoded | Ready:
    """Read a body of /api/embeddings, which has one text and one vector. Raises RefusedError."""
    top = body(raw)
    named = model(top)
    prompt = "" if top.get("prompt") is None else text(top["prompt"], "prompt")
    fields = {"input": [prompt] if prompt else [], "truncate_prompt_tokens": -1}
    return _decoded(named, fields, lambda vectors, *_: {"embedding": vectors[0] if vectors else []})


def _inputs(given: object) -> list[str]:
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise refused("input", f"must be a string or an array of strings, found {kind(given)}")
    return [text(item, f"input.{at}") for at, item in enumerate(array(given, "input"))]


def _decoded(named: str, fields: Json, shape: Shape) -> Decoded | Ready:
    """Without a text only the model is loaded."""
    if not fields["input"]:
        return Ready(named, lambda identity: msgspec.json.encode(shape([], Usage(), identity)))
    return Decoded(
        model=named,
        stream=False,
        body=lambda resolved: msgspec.json.encode({"model": resolved, "encoding_format": "float", **fields}),
        answer=lambda _: StreamRelay(named),
        non_streaming=lambda raw, identity: _answer(raw, shape, identity),
    )


def _answer(raw: bytes, shape: Shape, identity: AnswerId) -> NonStreamingAnswer:
    try:
        found = msgspec.json.decode(raw, type=_Vectors)
    except (ValueError, RecursionError) as error:
        return NonStreamingAnswer(malformed(f"the neuron's vectors cannot be read: {error}"))
    usage = (found.usage or ChatUsage()).neutral()
    vectors = [one.embedding for one in found.data]
    return NonStreamingAnswer(msgspec.json.encode(shape(vectors, usage, identity)), usage)
