"""Every dialect that the gateway speaks; the one place that knows them all."""

from collections.abc import Sequence

from cortex_gateway.dialects.anthropic.dialect import ANTHROPIC, VERBATIM
from cortex_gateway.dialects.dialect import Dialect
from cortex_gateway.dialects.ollama.dialect import OLLAMA
from cortex_gateway.dialects.openai.dialect import OPENAI
from cortex_gateway.dialects.responses.dialect import RESPONSES

DIALECTS: tuple[Dialect, ...] = (OPENAI, ANTHROPIC, RESPONSES, OLLAMA)


def dialects(*, stabilize_prompts: bool) -> tuple[Dialect, ...]:
    """All of them; with or without what keeps a prompt's beginning the same from turn to turn."""
    return DIALECTS if stabilize_prompts else (OPENAI, VERBATIM, RESPONSES, OLLAMA)


def spoken(dialects: Sequence[Dialect], path: str) -> Dialect:
    """The dialect that errors on `path` are told in: the first one's where no other covers it."""
    return next((dialect for dialect in dialects if dialect.covers(path)), dialects[0])
