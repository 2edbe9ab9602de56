"""Ollama's API over a neuron's chat, completions and embeddings: the dialect's record, and nothing of its fields."""

from collections.abc import Callable

import msgspec

from cortex_gateway.dialects.chat import decode_non_streaming
from cortex_gateway.dialects.dialect import (
    AnswerId,
    Decoded,
    Dialect,
    Fixed,
    Generation,
    Models,
    NonStreamingAnswer,
    Ready,
)
from cortex_gateway.dialects.events import Finish
from cortex_gateway.dialects.ollama import embed, errors, models, request, response
from cortex_gateway.dialects.ollama.request import CHAT, OllamaRequest
from cortex_gateway.dialects.ollama.response import Said
from cortex_gateway.dialects.ollama.stream import LineEncoder
from cortex_gateway.dialects.translation import Translation

API_VERSION = "0.24.0"
"""Clients ask for Ollama's version to know what they may use: the one whose API this is, not the gateway's."""


def _reading(read: Callable[[bytes], OllamaRequest], said: Said) -> Callable[[bytes], Decoded | Ready]:
    def decode(body: bytes) -> Decoded | Ready:
        asked = read(body)
        if asked.fields is None:
            loaded = response.loaded
            return Ready(asked.model, lambda identity: loaded(said, model=asked.model, identity=identity))
        return Decoded(
            model=asked.model,
            stream=asked.stream,
            body=asked.neuron_body,
            answer=lambda identity: Translation(LineEncoder(said, model=asked.model, identity=identity)),
            non_streaming=lambda raw, identity: _non_streaming(asked.model, said, raw, identity),
            neuron_path=asked.path,
            dropped=asked.dropped,
        )

    return decode


def _non_streaming(model: str, said: Said, raw: bytes, identity: AnswerId) -> NonStreamingAnswer:
    events = decode_non_streaming(raw)
    last = events[-1]
    usage = last.usage if isinstance(last, Finish) else None
    return NonStreamingAnswer(response.non_streaming(events, said, model=model, identity=identity), usage)


OLLAMA = Dialect(
    prefixes=("/api",),
    error=lambda failure, _: errors.body(failure),
    routes=(
        Generation("/api/chat", CHAT, "ollama_chat", _reading(request.chat, response.chat_said)),
        Generation("/api/generate", CHAT, "ollama_generate", _reading(request.generate, response.generate_said)),
        Generation("/api/embed", embed.EMBEDDINGS, "ollama_embed", embed.embed),
        Generation("/api/embeddings", embed.EMBEDDINGS, "ollama_embed", embed.embeddings),
        Models("GET", "/api/tags", models.tags),
        Models("GET", "/api/ps", models.running),
        Models("POST", "/api/show", models.shown, wanted=request.shown),
        Fixed("GET", "/api/version", msgspec.json.encode({"version": API_VERSION})),
    ),
    stream_type="application/x-ndjson",
    json_only=False,  # nor does Ollama ask: `curl -d` calls everything a form
)
