"""From a checkpoint's config and a spec to an embedding engine: sizes and the memory plan; knows the order, no sockets.

There are no pages: a model of whole texts keeps nothing of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from attrs import frozen

from models.encoder.texts import BLOCK
from models.errors import ModelError
from models.registry import build_embedder
from models.spec import Embedder, ParamSpec
from models.storage import Storage
from neuron_jax.engine.build import RUNTIME_BYTES
from neuron_jax.engine.embedding.sizes import CallSize, declare
from neuron_jax.engine.memory import LIMIT, MIB, STEP, TOTAL, DoesNotFitError
from neuron_jax.workers.frames import EngineSpec, MemoryRow

STEP_TOKENS = {"cpu": 1024, "cuda": 16384}
"""Tokens of a call, about: on two cores 1,024 of MiniLM take a tenth of a second, for which new requests wait."""

MOST_CONTEXT = 8192
"""Tokens of a text where nobody says more: attention over whole texts has no pages to be sparing with."""

PROGRAM_BYTES = 8 * MIB
"""What a compiled program takes, about."""

SLOTS = 64
"""Requests whose texts wait in the engine at once; they share its calls."""


@frozen
class EmbedDesign:
    """Everything decided before the first byte of memory is taken."""

    model: Embedder
    dtype: Any
    max_context: int
    sizes: tuple[CallSize, ...]
    rows: tuple[MemoryRow, ...]


def design(config: Any, spec: EngineSpec, *, limit: int, storage: Mapping[str, Storage] | None = None) -> EmbedDesign:
    """What an engine of `spec` for a checkpoint's `config` will look like, in `limit` bytes.

    Raises models.errors.ModelError for what the model does not do, DoesNotFitError with the memory table.
    """
    return design_of(model_of(config, spec, storage), spec, limit=limit)


def model_of(config: Any, spec: EngineSpec, storage: Mapping[str, Storage] | None = None) -> Embedder:
    """The model that an engine of `spec` computes with. Raises models.errors.ModelError."""
    misfits = ["deterministic: sums of whole texts depend on the size of a call"] if spec.deterministic else []
    if spec.kv_dtype != "auto":
        misfits.append(f"kv_dtype {spec.kv_dtype!r}: a model of whole texts keeps nothing of them")
    if spec.transform:
        misfits.append("transform: it is for models that generate")
    if spec.adapters:
        misfits.append("adapters: they are served beside models that generate")
    if misfits:
        raise ModelError("a model that embeds texts cannot be loaded so", misfits)
    quant = "none" if spec.quant == "auto" else spec.quant
    return build_embedder(
        config, tensor_parallel=spec.tensor_parallel, quant=quant, dtype=_dtype(spec), storage=storage
    )


def _dtype(spec: EngineSpec) -> Any:
    """What is computed in."""
    return jnp.float32 if spec.platform == "cpu" else jnp.bfloat16


def design_of(model: Embedder, spec: EngineSpec, *, limit: int) -> EmbedDesign:
    """What an engine of `spec` for `model` will look like. Raises DoesNotFitError."""
    longest = min(spec.max_context or MOST_CONTEXT, model.max_positions)
    sizes = declare(longest, spec.chunk_tokens or STEP_TOKENS[spec.platform])
    rows: tuple[MemoryRow, ...] = (
        MemoryRow("weights", sum(leaf.nbytes for leaf in _leaves(model.param_specs))),
        MemoryRow(STEP, max(_step(model, size) for size in sizes)),
        MemoryRow("runtime", RUNTIME_BYTES[spec.platform] + len(sizes) * PROGRAM_BYTES),
    )
    total = sum(row.bytes for row in rows)
    rows = (*rows, MemoryRow(TOTAL, total), MemoryRow(LIMIT, limit))
    if total > limit:
        more = -(-(total - limit) // MIB)
        raise DoesNotFitError(rows, f"{more} MiB more would do, or a smaller max_context")
    return EmbedDesign(model, _dtype(spec), longest, sizes, rows)


def _step(model: Embedder, size: CallSize) -> int:
    """Bytes of temporaries, counted generously from shapes: float32, four copies of the widest activation, and the scores
    of a block of attention with their softmax."""
    return 4 * (4 * size.places * model.widest + 3 * model.heads * size.places * min(size.width, BLOCK))


def _leaves(tree: Any) -> Iterator[ParamSpec]:
    if isinstance(tree, ParamSpec):
        yield tree
        return
    for child in tree.values() if isinstance(tree, Mapping) else tree:
        yield from _leaves(child)
