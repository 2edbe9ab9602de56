"""OpenAI's chat and completions, which a neuron speaks itself: bodies pass through; knows no other dialect."""

from cortex_gateway.dialects.dialect import Decoded, Dialect, Generation, ToCount, Tokenizing
from cortex_gateway.dialects.openai import errors, request
from cortex_gateway.dialects.openai.relay import StreamRelay, relay_non_streaming


def _decode(body: bytes) -> Decoded:
    asked = request.read(body)
    return Decoded(
        model=asked.model,
        stream=asked.stream,
        body=asked.addressed,
        answer=lambda _: StreamRelay(asked.model),
        non_streaming=lambda raw, _: relay_non_streaming(raw, asked.model),
        affinity=asked.cache_key,
    )


def _tokens(body: bytes) -> ToCount:
    asked = request.read(body)
    return ToCount(asked.model, asked.addressed)


OPENAI = Dialect(
    prefixes=(),
    error=lambda failure, _: errors.body(failure),
    routes=(
        Generation("/v1/chat/completions", "/v1/chat/completions", "chat", _decode),
        Generation("/v1/completions", "/v1/completions", "completions", _decode),
        # vLLM's, on the paths that it has for them
        Tokenizing("/tokenize", _tokens),
        Tokenizing("/detokenize", _tokens),
    ),
)
