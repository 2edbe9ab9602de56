"""Architecture names -> families, imported on demand; must not know what a family does."""

import importlib
from collections.abc import Mapping
from typing import Any

from models.errors import ModelError
from models.spec import Family, Model

FAMILIES: dict[str, str] = {
    "LlamaForCausalLM": "models.llama",
    "MistralForCausalLM": "models.llama",
}
"""Name in config.json's `architectures` -> module with a `build`."""


def architecture(config: Mapping[str, Any]) -> str:
    """The first of the config's `architectures` that is known. Raises ModelError naming the known ones."""
    named = config.get("architectures")
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        named = []
    for name in named:
        if name in FAMILIES:
            return str(name)
    found = ", ".join(named) if named else "none named in `architectures`"
    raise ModelError("unknown architecture", [f"found {found}; known are {', '.join(sorted(FAMILIES))}"])


def build(config: Mapping[str, Any], **choices: Any) -> Model:
    """The model of a checkpoint's config; `choices` as in `models.spec.Family`. Raises ModelError with every misfit."""
    family: Family = importlib.import_module(FAMILIES[architecture(config)])
    return family.build(config, **choices)
