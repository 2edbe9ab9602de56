"""Computes calls on the device: owner of the parameters and programs of an embedding model. Knows rows, not requests."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from attrs import frozen

from models.encoder.texts import Texts
from models.spec import Embedder, Params
from neuron_jax.engine.embedding.line import Call
from neuron_jax.engine.embedding.sizes import CallSize

Programs = Mapping[CallSize, jax.stages.Compiled]


def compile_all(
    model: Embedder, params: Any, sizes: Sequence[CallSize], report: Callable[[int, int], None], workers: int = 2
) -> Programs:
    """The program of every size. `params`: shapes with shardings."""
    with ThreadPoolExecutor(workers, thread_name_prefix="compile") as pool:
        pending = {size: pool.submit(_compile, model, params, size) for size in sizes}
        done: dict[CallSize, jax.stages.Compiled] = {}
        for size, compiling in pending.items():
            report(len(done), len(sizes))
            done[size] = compiling.result()
        report(len(done), len(sizes))
    return done


def _compile(model: Embedder, params: Any, size: CallSize) -> jax.stages.Compiled:
    rows, line = (jax.ShapeDtypeStruct(shape, np.int32) for shape in ((size.rows, size.width), (size.texts,)))
    shapes: Any = Texts(*(rows,) * 4, *(line,) * 2)  # type: ignore[arg-type]  # shapes in place of arrays

    def embed(params: Params, texts: Texts) -> jax.Array:
        return model.embed(params, texts)

    return jax.jit(embed).lower(params, shapes).compile()


@frozen(eq=False)
class EmbedRunner:
    """One thread calls it."""

    params: Params
    programs: Programs

    def start(self, call: Call) -> jax.Array:
        """Begins to compute `call`; returns before it is done."""
        found: jax.Array = self.programs[call.size](self.params, packed(call))
        found.copy_to_host_async()
        return found

    def fetch(self, call: Call, found: jax.Array) -> Any:
        """Waits for it: float32 [texts of the call, width], in their order."""
        return np.asarray(found, np.float32)[: len(call.texts)]


def packed(call: Call) -> Texts:
    """The arrays of a call, on the host."""
    size = call.size
    tokens, positions, types = (np.zeros((size.rows, size.width), np.int32) for _ in range(3))
    owner = np.full((size.rows, size.width), size.texts, np.int32)
    first, last = (np.zeros(size.texts, np.int32) for _ in range(2))
    number = 0
    for row, texts in enumerate(call.rows):
        at = 0
        for text in texts:
            end = at + len(text.ids)
            tokens[row, at:end] = text.ids
            positions[row, at:end] = range(end - at)
            types[row, at + text.second : end] = 1 if text.second else 0
            owner[row, at:end] = number
            first[number], last[number] = row * size.width + at, row * size.width + end - 1
            number, at = number + 1, end
    return Texts(tokens, positions, types, owner, first, last)  # type: ignore[arg-type]  # a program takes numpy's arrays
