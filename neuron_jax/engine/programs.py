"""The compiled programs: each key of the bucket list traced, lowered and compiled ahead of time. Knows shapes, no requests.

Compiling runs in threads; only the thread that owns the engine looks at the results (`collect`).
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import define, field, frozen

from models.sharding import named_sharding
from models.spec import Model, ParamSpec
from neuron_jax.engine import packing, sampler
from neuron_jax.engine.attention import BLOCK, LayerCache, PagedAttend
from neuron_jax.engine.buckets import ForwardKey, Key, Sampler

Pool = tuple[LayerCache, ...]


@frozen
class Shapes:
    """The sizes that every program is compiled for, besides its key."""

    page_size: int
    pages: int  # without the trash page
    max_slots: int
    max_context: int

    @property
    def table(self) -> int:
        """Page numbers per row: the context, rounded up to whole attention blocks."""
        return -(-self.max_context // BLOCK) * BLOCK // self.page_size


@frozen
class Program:
    """Pure functions of one model for one mesh, and the abstract arguments they are compiled for."""

    model: Model
    mesh: jax.sharding.Mesh
    shapes: Shapes
    dtype: Any

    def abstract_params(self) -> Any:
        return jax.tree.map(
            lambda spec: self._abstract(spec.shape, spec.dtype, spec.axes),
            self.model.param_specs,
            is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
        )

    def abstract_pool(self) -> Any:
        """The tree of `Pool`, in shapes."""
        spec = self.model.cache_spec
        shape = (self.shapes.pages + 1, self.shapes.page_size, spec.kv_heads, spec.head_dim)
        page = self._abstract(shape, self.dtype, (None, None, "kv_heads", None))
        return ((page, page),) * spec.layers

    def abstract_counts(self) -> Any:
        """The tree of `sampler.Counts`, in shapes."""
        shape = (self.shapes.max_slots + 1, self.model.vocab_size)
        whole = (None, None)
        return sampler.Counts(self._abstract(shape, jnp.int16, whole), self._abstract(shape, jnp.bool_, whole))

    def lower(self, key: Key) -> jax.stages.Lowered:
        """The program of `key`, traced and lowered for this mesh. The pool and the counts are donated."""
        if isinstance(key, ForwardKey):
            return self._lower_forward(key)
        if key.sampler is Sampler.FULL:
            full = jax.jit(partial(_sample_full, self.model), donate_argnums=2, out_shardings=self._replicated())
            packed = self._packed(key.rows, packing.FULL_WIDTH)
            return full.lower(self.abstract_params(), self._hidden(key.rows), self.abstract_counts(), packed)
        sample = jax.jit(partial(_sample, self.model, key.sampler), out_shardings=self._replicated())
        packed = self._packed(key.rows, packing.SAMPLE_WIDTH)
        return sample.lower(self.abstract_params(), self._hidden(key.rows), packed)

    def _lower_forward(self, key: ForwardKey) -> jax.stages.Lowered:
        pool = self.abstract_pool()
        # Named outright: left to itself, a mesh of one device would lose the pool's sharding and copy it every step.
        out = (jax.tree.map(lambda leaf: leaf.sharding, pool), self._replicated())
        step = jax.jit(partial(_forward, self.model, key.chunk), donate_argnums=1, out_shardings=out)
        packed = self._packed(key.rows, packing.forward_width(key.chunk, self.shapes.table))
        return step.lower(self.abstract_params(), pool, packed)

    def _hidden(self, rows: int) -> Any:
        packed = self._packed(rows, packing.forward_width(1, self.shapes.table))
        step = partial(_forward, self.model, 1)
        hidden = jax.eval_shape(step, self.abstract_params(), self.abstract_pool(), packed)[1]
        return self._abstract(hidden.shape, hidden.dtype, (None, None))

    def _packed(self, rows: int, width: int) -> Any:
        return self._abstract((rows, width), jnp.int32, (None, None))

    def _replicated(self) -> jax.sharding.NamedSharding:
        return named_sharding(self.mesh, ())

    def _abstract(self, shape: tuple[int, ...], dtype: Any, axes: tuple[str | None, ...]) -> Any:
        sharding = named_sharding(self.mesh, axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


@define(eq=False)
class Compiler:
    """Compiles keys in the background, in order. Only its owner's thread calls its methods."""

    lower: Callable[[Key], jax.stages.Lowered]
    workers: int
    ready: dict[Key, jax.stages.Compiled] = field(factory=dict, init=False)
    _pool: ThreadPoolExecutor = field(init=False)
    _pending: dict[Key, Future[jax.stages.Compiled]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="compile")

    def start(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._pending[key] = self._pool.submit(self._compile, key)

    def wait(self, keys: Iterable[Key], report: Callable[[int, int], None]) -> None:
        """Block until `keys` are ready. Raises what compiling raised."""
        wanted = list(keys)
        for done, key in enumerate(wanted):
            report(done, len(wanted))
            self._pending[key].result()
        report(len(wanted), len(wanted))
        self.collect()

    def collect(self) -> int:
        """Take over what has been compiled since; how many programs that were. Raises what compiling raised."""
        done = [key for key, future in self._pending.items() if future.done()]
        for key in done:
            self.ready[key] = self._pending.pop(key).result()
        return len(done)

    def _compile(self, key: Key) -> jax.stages.Compiled:
        return self.lower(key).compile()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _forward(model: Model, chunk: int, params: Any, pool: Pool, packed: jax.Array) -> tuple[Pool, jax.Array]:
    """One step: the new pool, and the hidden state of each row's last token [R, D]."""
    start, count, tokens, table = packing.unpack_forward(packed, chunk)
    attend = PagedAttend(table, start, count, chunk)
    # Padding may reach past the last position that the rotary table of a model knows.
    positions = jnp.minimum(attend.positions, model.max_positions - 1)
    hidden, pool = model.forward(params, tokens.reshape(-1), positions.reshape(-1), attend, pool)
    rows = hidden.reshape(tokens.shape[0], chunk, hidden.shape[-1])
    last = jnp.maximum(count - 1, 0)[:, None, None]
    return tuple(pool), jnp.take_along_axis(rows, last, axis=1)[:, 0]


def _sample(model: Model, kind: Sampler, params: Any, hidden: jax.Array, packed: jax.Array) -> jax.Array:
    """int32 [R, 1]."""
    logits = model.logits(params, hidden)
    if kind is Sampler.GREEDY:
        return sampler.greedy(logits)[:, None]
    return sampler.draw(logits, packing.unpack_sample(packed))[:, None]


def _sample_full(
    model: Model, params: Any, hidden: jax.Array, counts: sampler.Counts, packed: jax.Array
) -> tuple[jax.Array, sampler.Counts]:
    """int32 [R, FULL_OUTPUT] and the new counts."""
    drawn, counts = sampler.full(model.logits(params, hidden), packing.unpack_sample(packed), counts)
    return packing.pack_drawn(drawn), counts
