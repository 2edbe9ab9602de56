"""Architecture names -> families, imported on demand; must not know what a family does."""

import importlib
from collections.abc import Mapping
from typing import Any

from models.errors import ModelError
from models.spec import Model

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


def build(config: Mapping[str, Any], *, tensor_parallel: int = 1, quant: str = "none", dtype: Any = None) -> Model:
    """The model of a checkpoint's config; see `models.spec.Family`. Raises ModelError with every misfit."""
    family = importlib.import_module(FAMILIES[architecture(config)])
    model: Model = family.build(config, tensor_parallel=tensor_parallel, quant=quant, dtype=dtype)
    return model
