"""All of a model's folder but its weights, written of what was read; must not know jax or containers of weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuron_jax.weights.describe import (
    GENERATION_CONFIG,
    GGUF_TOKENIZER,
    TEMPLATE_FILE,
    TEMPLATE_FILES,
    TOOL_USE,
    ModelDescription,
)


def write_rest(described: ModelDescription, config: Mapping[str, Any], folder: Path) -> None:
    """All of a model's folder but its weights, from a folder or from a GGUF header."""
    _write_json(folder / "config.json", config)
    ends = {"eos_token_id": list(described.eos_ids)} if described.eos_ids else {}
    _write_json(folder / GENERATION_CONFIG, {**described.generation_config, **ends})
    tokenizer = described.tokenizer
    if tokenizer.config:
        _write_json(folder / "tokenizer_config.json", tokenizer.config)
    if described.chat_template is not None:
        (folder / TEMPLATE_FILE).write_text(described.chat_template)
    if described.tool_template is not None:
        (folder / TEMPLATE_FILES).mkdir()
        (folder / TEMPLATE_FILES / f"{TOOL_USE}.jinja").write_text(described.tool_template)
    if tokenizer.json is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer.json)
    elif tokenizer.file is not None:
        name, content = tokenizer.file
        (folder / name).write_bytes(content)
    elif tokenizer.gguf is not None:
        _write_json(folder / GGUF_TOKENIZER, tokenizer.gguf)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), ensure_ascii=False, indent=2) + "\n")
