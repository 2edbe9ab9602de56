"""The text as a model's own tokens, and the process that measures on them; knows files and processes, must not know JAX."""

from collections.abc import Generator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from rich.console import Console
from rich.table import Table

from neuron_jax.errors import LoadError
from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.tokenizer import load_tokenizer
from neuron_jax.weights.describe import ModelDescription
from neuron_jax.workers.child import Record, run_child
from neuron_jax.workers.frames import EngineSpec

MIB = 2**20


def run_quality(
    engine: EngineSpec, described: ModelDescription, quants: Sequence[str], inherited: Mapping[str, str]
) -> Generator[Record]:
    """Records of progress, and {"quality": ...} for each of `quants`. Raises LoadError."""
    source = described.tokenizer
    try:
        tokenizer = load_tokenizer(json=source.json, gguf=source.gguf, config=source.config, file=source.file)
    except TokenizerError as error:
        raise LoadError("bad_checkpoint", f"{engine.model_id}: {error}") from error
    ids = tokenizer.encode(text(), add_special=True)
    options = {"ids": ids, "bos": described.bos_id, "quants": list(quants)}
    return run_child("neuron_jax.quality.worker", engine, options, inherited)


def text() -> str:
    """The English text that every model is measured on; ours, so that no model has learned it by heart."""
    return files("neuron_jax.quality").joinpath("text.txt").read_text(encoding="utf-8")


def report(engine: EngineSpec, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `neuron quality --json` prints."""
    return {"model": engine.model_id, "platform": engine.platform, "formats": [dict(row) for row in rows]}


def print_quality(found: Mapping[str, Any], console: Console) -> None:
    """The answer of `neuron quality`."""
    tokens = found["formats"][0]["tokens"]
    console.print(f"{found['model']}: {tokens} tokens of English, against float32", markup=False, highlight=False)
    table = Table("quant", "weights MiB", "perplexity", "mean KL", "99 % of KL", "same first choice")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found["formats"]:
        size, kl = f"{row['weight_bytes'] / MIB:,.1f}", (f"{row[name]:.5f}" for name in ("kl_mean", "kl_p99"))
        table.add_row(row["quant"], size, f"{row['perplexity']:.3f}", *kl, f"{row['same_first']:.1%}")
    console.print(table)
