"""How deep a body that is translated may be nested; knows JSON values, not what they mean."""

from typing import Any

from neuron_jax.common.nesting import deep_steps

MAX_DEPTH = 120
"""Levels. A neuron reads 128, of which the translation needs some."""


def deep_path(body: bytes, value: Any, most: int = MAX_DEPTH) -> str | None:
    """The beginning of the path to something in `value`, which `body` holds, that is nested deeper than `most` levels."""
    if body.count(b"[") + body.count(b"{") <= most:
        return None
    return ".".join(map(str, deep_steps(value, most))) or None
