"""OpenAI's chat, completions and embeddings, which a neuron speaks itself: bodies pass through; knows no other dialect.

So do rerank and score, which OpenAI does not have: as Cohere, Jina and vLLM have them.
"""

from functools import partial
from typing import Any

import attrs
import msgspec

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.dialect import AnswerId, Decoded, Dialect, Fixed, Generation, ToCount, Tokenizing
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.openai import errors, request
from cortex_gateway.dialects.openai.relay import StreamRelay, relay_non_streaming

NO_MEDIA = "the models here read and write text only"
ONE_BY_ONE = "send the requests one by one, as many at once as there is room for"
NOT_HERE = {
    "audio/speech": NO_MEDIA,
    "audio/transcriptions": NO_MEDIA,
    "audio/translations": NO_MEDIA,
    "images/generations": NO_MEDIA,
    "images/edits": NO_MEDIA,
    "images/variations": NO_MEDIA,
    "videos": NO_MEDIA,
    "batches": ONE_BY_ONE,
    "files": "send what they hold as text in a message",
    "moderations": "nobody here moderates",
    "assistants": "use /v1/responses",
    "threads": "use /v1/responses",
}
"""Routes of OpenAI's below /v1 that clients try, and what to do instead."""


def _refusal(path: str) -> Failure:
    words = f"/v1/{path} is not supported here: {NOT_HERE[path]}."
    return Failure(404, "invalid_request_error", "unsupported_route", words)


def _idle(model: str, identity: AnswerId, *, chat: bool) -> bytes:
    """A chunk without a word, before a neuron has said any."""
    prefix, kind = ("chatcmpl-", "chat.completion.chunk") if chat else ("cmpl-", "text_completion")
    said: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
    head = {"id": prefix + identity.unique, "object": kind, "created": identity.created, "model": model}
    return sse.encode(msgspec.json.encode({**head, "choices": [{"index": 0, **said, "finish_reason": None}]}))


def _decode(body: bytes, *, chat: bool) -> Decoded:
    asked = request.read(body)
    return Decoded(
        model=asked.model,
        stream=asked.stream,
        body=asked.addressed,
        answer=lambda identity: StreamRelay(asked.model, _idle(asked.model, identity, chat=chat)),
        non_streaming=lambda raw, _: relay_non_streaming(raw, asked.model),
        affinity=asked.cache_key,
    )


def _tokens(body: bytes) -> ToCount:
    asked = request.read(body)
    return ToCount(asked.model, asked.addressed)


def _decode_whole(body: bytes) -> Decoded:
    """Of a route that never streams, whatever a body says."""
    return attrs.evolve(_decode(body, chat=False), stream=False)


OPENAI = Dialect(
    prefixes=(),
    error=lambda failure, _: errors.body(failure),
    routes=(
        Generation("/v1/chat/completions", "/v1/chat/completions", "chat", partial(_decode, chat=True)),
        Generation("/v1/completions", "/v1/completions", "completions", partial(_decode, chat=False)),
        Generation("/v1/embeddings", "/v1/embeddings", "embeddings", _decode_whole),
        Generation("/v1/rerank", "/v1/rerank", "rerank", _decode_whole),
        Generation("/v1/score", "/v1/score", "score", _decode_whole),
        # vLLM's, on the paths that it has for them
        Tokenizing("/tokenize", _tokens),
        Tokenizing("/detokenize", _tokens),
        *(Fixed("POST", f"/v1/{path}", _refusal(path)) for path in NOT_HERE),
        *(Fixed("GET", f"/v1/{path}", _refusal(path)) for path in ("batches", "files")),
    ),
)
