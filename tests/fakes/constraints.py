"""A vocabulary for the tiny models, and requests for their engines that have a constraint."""

import json
from typing import Any

from msgspec.structs import replace

from neuron_jax.workers.frames import Constraint, Submit, Vocabulary
from tests.fakes.engines import submit

END = 299
WORDS = [b'{"', b'":', b' "', b'"}', b"name", b"count", b'", "', b"true", b"false", b"an"]
VOCABULARY = Vocabulary(
    [*(bytes([byte]) for byte in range(256)), *WORDS, *[b""] * (43 - len(WORDS)), b"<end>"], (END,), (END,)
)
"""The bytes, some longer words, ids that no token has, and one that ends a text: 300 in all."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "maximum": 999, "minimum": 0},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


def bound(request: int, prompt: list[int], constraint: Constraint | None = None, **options: Any) -> Submit:
    """A request for JSON of SCHEMA, or as `constraint` says."""
    wanted = constraint or Constraint("json_schema", json.dumps(SCHEMA))
    return replace(submit(request, prompt, stop=(END,), **({"max_tokens": 60} | options)), constraint=wanted)


def text(tokens: list[int]) -> str:
    return b"".join(VOCABULARY.tokens[token] for token in tokens if token != END).decode()
