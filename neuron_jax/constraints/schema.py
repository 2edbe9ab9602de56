"""JSON schemas as llguidance is told them; knows keywords, no grammars."""

from typing import Any

from neuron_jax.constraints.errors import GrammarError


def plain_schema(schema: Any) -> Any:
    """A schema without what llguidance reads as settings of its own; `true` means any JSON, which it is told in words."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise GrammarError("it must be a JSON object")
    return {key: value for key, value in schema.items() if key != "x-guidance"}
