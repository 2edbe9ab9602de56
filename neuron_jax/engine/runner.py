"""Runs batches on the device: owner of parameters, KV pool and penalty counts. Knows rows, not the queue they came from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import define, field

from neuron_jax.engine import packing, sampler
from neuron_jax.engine.batch import Batch, Row, Sampled
from neuron_jax.engine.buckets import ForwardKey, SampleKey, Sampler, fit
from neuron_jax.engine.programs import Compiler, Pool, Program
from neuron_jax.engine.requests import Request
from neuron_jax.workers.frames import Sampling


@define(eq=False)
class Runner:
    """The device's side of an engine. One thread calls it; every call pads its batch to a program that is compiled."""

    program: Program
    compiler: Compiler
    params: Any
    _pool: Pool = field(init=False)
    _counts: sampler.Counts = field(init=False)
    _open_slot: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pool = _zeros(self.program.abstract_pool())
        self._counts = _zeros(self.program.abstract_counts())
        self._open_slot = jax.jit(_set_counts, donate_argnums=0)

    def admit(self, request: Request) -> None:
        """Tell the device what an admitted request's penalties count; a request without penalties needs nothing."""
        if not _has_penalties(request.sampling):
            return
        vocab = self.program.model.vocab_size
        in_prompt = np.zeros(vocab, np.bool_)
        in_prompt[request.tokens[: request.prompt_length]] = True
        generated = np.bincount(request.tokens[request.prompt_length :], minlength=vocab).astype(np.int16)
        self._counts = self._open_slot(self._counts, np.array(request.slot, np.int32), generated, in_prompt)

    def run(self, batch: Batch) -> dict[int, Sampled]:
        """Compute the rows' tokens; what was drawn for the rows that sample, by request id."""
        hidden = self._forward(batch)
        if not any(row.samples for row in batch.rows):
            # The plain loop finishes each step before the next: rates and deadlines then mean what they say.
            hidden.block_until_ready()
            return {}
        drawn = self._sample(hidden, batch, self._sampler(_sampler_for(batch), hidden.shape[0]))
        return packing.unpack_drawn(np.asarray(drawn), batch.rows)

    def _forward(self, batch: Batch) -> Any:
        key = self._forward_key(batch)
        table = self.program.shapes.table
        packed = packing.pack_forward(batch.rows, bucket=key.rows, chunk=key.chunk, table=table)
        self._pool, hidden = self.compiler.ready[key](self.params, self._pool, packed)
        return hidden

    def _sample(self, hidden: Any, batch: Batch, kind: Sampler) -> Any:
        rows = hidden.shape[0]
        full = kind is Sampler.FULL
        packed = packing.pack_sample(batch.rows, bucket=rows, trash_slot=self.program.shapes.max_slots, full=full)
        program = self.compiler.ready[SampleKey(rows, kind)]
        if not full:
            return program(self.params, hidden, packed)
        drawn, self._counts = program(self.params, hidden, self._counts, packed)
        return drawn

    def _forward_key(self, batch: Batch) -> ForwardKey:
        """The smallest compiled program that holds the batch, which may be larger than the best one while compiling."""
        ready = [key for key in self.compiler.ready if isinstance(key, ForwardKey)]
        if not batch.is_decode:
            return ForwardKey(1, fit(batch.rows[0].count, [key.chunk for key in ready if key.rows == 1]))
        # A row count whose sampler is still being compiled does not count as ready.
        sampled = {
            key.rows for key in self.compiler.ready if isinstance(key, SampleKey) and key.sampler is Sampler.FULL
        }
        return ForwardKey(
            fit(len(batch.rows), [key.rows for key in ready if key.chunk == 1 and key.rows in sampled]), 1
        )

    def _sampler(self, least: Sampler, rows: int) -> Sampler:
        """The least sampler that does what is needed and is compiled; FULL does everything."""
        able = list(Sampler)[list(Sampler).index(least) :]
        return next(kind for kind in able if SampleKey(rows, kind) in self.compiler.ready)


def _sampler_for(batch: Batch) -> Sampler:
    return max((_needs(row) for row in batch.rows), key=list(Sampler).index)


def _needs(row: Row) -> Sampler:
    sampling = row.request.sampling
    if sampling.logprobs is not None or sampling.logit_bias or row.request.banned or _has_penalties(sampling):
        return Sampler.FULL
    return Sampler.DRAW if sampling.temperature > 0 else Sampler.GREEDY


def _has_penalties(sampling: Sampling) -> bool:
    neutral = (0.0, 0.0, 1.0)
    return (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) != neutral


def _set_counts(counts: sampler.Counts, slot: jax.Array, generated: jax.Array, in_prompt: jax.Array) -> sampler.Counts:
    return sampler.Counts(counts.generated.at[slot].set(generated), counts.in_prompt.at[slot].set(in_prompt))


def _zeros(abstract: Any) -> Any:
    """Real arrays of zeros for a tree of shapes with shardings. Zeros, because NaN in an unread page would still spread."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), abstract)
