"""A client's wish for thinking as the variables that chat templates read; knows their spellings, no tokens and no wires.

Sources: the templates of Qwen3, GLM 4.5 and SmolLM3 (`enable_thinking`), DeepSeek V3.1 and Granite 3 (`thinking`),
gpt-oss (`reasoning_effort`).
"""

from collections.abc import Mapping
from typing import Any

OFF = ("none", "minimal")
"""Efforts that ask for as good as no thinking."""
NEAREST = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""What a template that only knows low, medium and high is told instead."""


def spelled(variables: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """`variables` with `enable_thinking` and `reasoning_effort` in every spelling, for a template of this `source`.

    An effort says whether to think where `enable_thinking` does not. What a client has set himself stays as it is.
    """
    said = {key: value for key, value in variables.items() if value is not None}
    effort, wanted = said.get("reasoning_effort"), said.get("enable_thinking")
    if wanted is None and isinstance(effort, str):
        wanted = effort not in OFF
    if wanted is not None:
        said = {"thinking": wanted, **said, "enable_thinking": wanted}
    if effort in NEAREST and not any(f"{quote}{effort}{quote}" in source for quote in "'\""):
        said["reasoning_effort"] = NEAREST[effort]
    return said
