"""Every family, registered in this one place, and how a config finds its own; must not know what a family does, nor jax."""

import importlib
from collections.abc import Iterator

from models.config import architectures
from models.errors import ModelError
from models.gguf import GgufTable
from models.spec import Config, Family, Model, Outline

FAMILIES = [
    "models.llama",
    "models.ministral3",
    "models.qwen2",
    "models.qwen3",
    "models.qwen3_moe",
    "models.gpt_oss",
    "models.mixtral",
    "models.gemma2",
    "models.gemma3",
    "models.glm4",
    "models.glm4_moe",
    "models.granite",
    "models.phi3",
    "models.smollm3",
]
"""Modules with a `FAMILY`."""


def families() -> Iterator[Family]:
    """All of them, imported when first asked for."""
    for module in FAMILIES:
        family: Family = importlib.import_module(module).FAMILY
        yield family


def family_of(config: Config) -> Family:
    """The family of the first of the config's `architectures` that is known; where it names none, as the text part of a
    larger model may, that of its `model_type`. Raises ModelError naming the known ones.
    """
    named = architectures(config)
    known = {name: family for family in families() for name in family.architectures}
    for name in named:
        if name in known:
            return known[name]
    kind = config.get("model_type")
    if not named and (alike := [family for family in families() if kind in family.model_types]):
        return alike[0]
    found = ", ".join(named) if named else "none named in `architectures`"
    raise ModelError("unknown architecture", [f"found {found}; known are {', '.join(sorted(known))}"])


def read(config: Config) -> Outline:
    """What a model of this config would be. Raises ModelError with every misfit."""
    return family_of(config).read(config)


def build(config: Config, **choices: object) -> Model:
    """The model of a checkpoint's config; `choices` as in `models.spec.Build`. Raises ModelError with every misfit."""
    made: Model = family_of(config).build(config, **choices)  # type: ignore[arg-type]  # the family says what is wrong
    return made


def gguf_tables() -> dict[str, GgufTable]:
    """By `general.architecture`."""
    return {table.architecture: table for family in families() for table in family.gguf}
