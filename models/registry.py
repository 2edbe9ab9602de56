"""Every family, registered in this one place, and how a config finds its own; must not know what a family does, nor jax."""

import importlib
from collections.abc import Iterator
from typing import Any, cast

from models.config import architectures
from models.errors import ModelError
from models.gguf import GgufTable
from models.pooling import (
    has_pooling,
    read_logit_score,
    read_pooling,
    scores_by_logits,
    scores_by_rows,
    sees_both_ways,
)
from models.spec import Config, Embedder, Family, Model, Outline, Purpose

FAMILIES = [
    "models.llama",
    "models.llama4",
    "models.ministral3",
    "models.qwen2",
    "models.qwen3",
    "models.cohere2",
    "models.deepseek_v2",
    "models.deepseek_v3",
    "models.ernie4_5",
    "models.ernie4_5_moe",
    "models.exaone4",
    "models.qwen3_5",
    "models.qwen3_5_moe",
    "models.qwen3_moe",
    "models.qwen3_next",
    "models.gpt_oss",
    "models.minimax_m2",
    "models.mixtral",
    "models.gemma2",
    "models.gemma3",
    "models.gemma4",
    "models.glm4",
    "models.glm4_moe",
    "models.glm4_moe_lite",
    "models.granite",
    "models.granitemoe",
    "models.granitemoehybrid",
    "models.hunyuan_v1_dense",
    "models.hunyuan_v1_moe",
    "models.lfm2",
    "models.lfm2_moe",
    "models.nemotron_h",
    "models.olmo2",
    "models.phi3",
    "models.seed_oss",
    "models.smollm3",
    "models.bert",
    "models.modernbert",
    "models.nomic_bert",
    "models.eurobert",
]
"""Modules with a `FAMILY`."""


_BARE, _HEADED = "Model", "ForCausalLM"
"""How transformers calls a decoder that was saved without its head, as who trains it to embed does, and the same with it."""


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
    for name in (*named, *(one.removesuffix(_BARE) + _HEADED for one in named if one.endswith(_BARE))):
        if name in known:
            return known[name]
    kind = config.get("model_type")
    if not named and (alike := [family for family in families() if kind in family.model_types]):
        return alike[0]
    found = ", ".join(named) if named else "none named in `architectures`"
    raise ModelError("unknown architecture", [f"found {found}; known are {', '.join(sorted(known))}"])


def read(config: Config) -> Outline:
    """What a model of this config would be. Raises ModelError with every misfit."""
    outline = family_of(config).read(config)
    if read_logit_score(config, outline.vocab_size) is None and not scores_by_rows(config):
        read_pooling(config)
    return outline


def purpose(config: Config) -> Purpose:
    """What a checkpoint is for: a decoder that was saved with a pooling embeds, and one that was saved with the
    tokens of its verdict scores. Raises ModelError for unknown families.
    """
    usual = family_of(config).purpose(config)
    if usual != "generate":
        return usual
    if scores_by_logits(config):
        return "score"
    return "embed" if has_pooling(config) else usual


def build(config: Config, **choices: object) -> Model:
    """The model of a checkpoint's config; `choices` as in `models.spec.Build`. Raises ModelError with every misfit."""
    family = family_of(config)
    if family.purpose(config) != "generate":
        raise ModelError(f"config of {', '.join(architectures(config))}", ["it embeds texts, and generates none"])
    return cast(Model, family.build(config, **choices))  # type: ignore[arg-type]  # the family says what is wrong


def build_embedder(config: Config, **choices: object) -> Embedder:
    """The same of a config whose `purpose` is to embed or to score. Raises ModelError with every misfit."""
    family = family_of(config)
    decodes = family.purpose(config) == "generate"
    if decodes and (
        scores_by_rows(config) or not scores_by_logits(config)
    ):  # nobody asks for logits, and checkpoints of embedders have no head
        config = {**config, "tie_word_embeddings": True}
    built = family.build(config, **choices)  # type: ignore[arg-type]  # the family says what is wrong
    if not decodes:
        return cast(Embedder, built)
    from models.encoder.decoder import embedding_decoder, scoring_decoder, verdict_decoder  # brings JAX

    model = cast(Model, built)
    if scores_by_rows(config):
        return verdict_decoder(model, config["hidden_size"])
    score = read_logit_score(config, model.vocab_size)
    if score is not None:
        return scoring_decoder(model, score)
    stored: Any = choices.get("storage")
    width = config["hidden_size"]
    return embedding_decoder(model, read_pooling(config), width, stored, causal=not sees_both_ways(config))


def gguf_embeds(architecture: str | None, pooling: object) -> bool:
    """Whether a file of this `general.architecture` that has this `pooling_type`, or None, is of a model of whole texts."""
    table = gguf_tables().get(architecture or "")
    return table is not None and (table.pooling is not None or bool(pooling))


def gguf_tables() -> dict[str, GgufTable]:
    """By `general.architecture`."""
    return {table.architecture: table for family in families() for table in family.gguf}
