"""A model in the layout that an engine of this host serves, in a folder of its own; knows files, imports no JAX.

The arrays are made by another process, with the settings and devices of an engine. The folder appears by one rename.
"""

import json
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from neuron_jax.errors import NeuronError
from neuron_jax.planning import Resolved
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.describe import GENERATION_CONFIG, GGUF_TOKENIZER, ModelDescription
from neuron_jax.workers.child import run_child


class OutputExistsError(NeuronError):
    """There is something where the converted model would go, and nothing is overwritten."""


def convert(found: Resolved, out: Path, inherited: Mapping[str, str]) -> Generator[Mapping[str, Any]]:
    """{"phase", "done", "total", "unit"} as they come, then {"made": ..., "path": ...}.

    Raises OutputExistsError, and LoadError for a model that cannot be loaded.
    """
    if out.exists():
        raise OutputExistsError(f"{out} is there already; give a path where nothing is")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_rest(found.described, Path(found.engine.path), partial)
        options = {"folder": str(partial.absolute())}
        for record in run_child("neuron_jax.workers.convert", found.engine, options, inherited):
            yield record if "made" not in record else {**record, "path": str(out)}
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_rest(described: ModelDescription, source: Path, folder: Path) -> None:
    """All of a model's folder but its weights, from a folder or from a GGUF header."""
    with open_checkpoint(source) as checkpoint:
        _write_json(folder / "config.json", checkpoint.config)
    ends = {"eos_token_id": list(described.eos_ids)} if described.eos_ids else {}
    _write_json(folder / GENERATION_CONFIG, {**described.generation_config, **ends})
    tokenizer = described.tokenizer
    if tokenizer.config:
        _write_json(folder / "tokenizer_config.json", tokenizer.config)
    if described.chat_template is not None:
        (folder / "chat_template.jinja").write_text(described.chat_template)
    if tokenizer.json is not None:
        (folder / "tokenizer.json").write_bytes(tokenizer.json)
    elif tokenizer.file is not None:
        name, content = tokenizer.file
        (folder / name).write_bytes(content)
    elif tokenizer.gguf is not None:
        _write_json(folder / GGUF_TOKENIZER, tokenizer.gguf)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), ensure_ascii=False, indent=2) + "\n")
