"""A step's host inputs as one int32 array each way, and back on the device. Knows layouts, not policy.

One array per program and direction: a transfer costs far more than its bytes. Floats travel as their bits.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from neuron_jax.engine.batch import Row, Sampled
from neuron_jax.engine.sampler import MAX_ALTERNATIVES, MAX_BIAS, Drawn, RowParams
from neuron_jax.workers.frames import Alternative

_INTS = ("slot", "position", "seed_low", "seed_high", "top_k")
_FLOATS = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
_SCALARS = len(_INTS) + len(_FLOATS)

SAMPLE_WIDTH = _SCALARS
FULL_WIDTH = _SCALARS + 2 * MAX_BIAS
FULL_OUTPUT = 2 + 2 * MAX_ALTERNATIVES


def forward_width(chunk: int, table: int) -> int:
    """int32 words of a row: start, count, `chunk` tokens, `table` page numbers."""
    return 2 + chunk + table


def pack_forward(rows: Sequence[Row], *, bucket: int, chunk: int, table: int) -> np.ndarray:
    """int32 [bucket, forward_width]; padding rows are all zero: no tokens, trash pages."""
    packed = np.zeros((bucket, forward_width(chunk, table)), np.int32)
    for line, row in zip(packed, rows, strict=False):
        line[0], line[1] = row.start, row.count
        line[2 : 2 + row.count] = row.request.tokens[row.start : row.start + row.count]
        line[2 + chunk : 2 + chunk + len(row.request.pages)] = row.request.pages
    return packed


def unpack_forward(packed: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """start [R], count [R], tokens [R, C], table [R, W]."""
    return packed[:, 0], packed[:, 1], packed[:, 2 : 2 + chunk], packed[:, 2 + chunk :]


def pack_sample(rows: Sequence[Row], *, bucket: int, trash_slot: int, full: bool) -> np.ndarray:
    """int32 [bucket, SAMPLE_WIDTH or FULL_WIDTH]; padding rows are greedy and count into `trash_slot`."""
    packed = np.zeros((bucket, FULL_WIDTH if full else SAMPLE_WIDTH), np.int32)
    packed[:, 0] = trash_slot
    for line, row in zip(packed, rows, strict=False):
        _pack_row(line, row)
        if full:
            _pack_bias(line[_SCALARS:], row)
    return packed


def unpack_sample(packed: jax.Array) -> RowParams:
    """The rows' parameters; of a packed array without biases, `bias_ids` and `bias` have no columns."""
    columns = {name: packed[:, i] for i, name in enumerate(_INTS)}
    for name in ("position", "seed_low", "seed_high"):
        columns[name] = lax.bitcast_convert_type(columns[name], jnp.uint32)
    for i, name in enumerate(_FLOATS, start=len(_INTS)):
        columns[name] = lax.bitcast_convert_type(packed[:, i], jnp.float32)
    bias_width = (packed.shape[1] - _SCALARS) // 2
    ids = packed[:, _SCALARS : _SCALARS + bias_width]
    bias = lax.bitcast_convert_type(packed[:, _SCALARS + bias_width :], jnp.float32)
    return RowParams(**columns, bias_ids=ids, bias=bias)


def pack_drawn(drawn: Drawn) -> jax.Array:
    """int32 [R, FULL_OUTPUT]: token, logprob, ids, logprobs; short of MAX_ALTERNATIVES for a tiny vocabulary."""
    logprob = lax.bitcast_convert_type(drawn.logprob, jnp.int32)
    top_logprobs = lax.bitcast_convert_type(drawn.top_logprobs, jnp.int32)
    return jnp.concatenate([drawn.token[:, None], logprob[:, None], drawn.top_ids, top_logprobs], axis=1)


def unpack_drawn(packed: np.ndarray, rows: Sequence[Row]) -> dict[int, Sampled]:
    """What each row drew, by request id. int32 [R, 1] (token alone) or the array of `pack_drawn`."""
    if packed.shape[1] == 1:
        return {row.request.id: Sampled(int(token), 0.0) for row, token in zip(rows, packed[:, 0], strict=False)}
    return {row.request.id: _sampled(line, row) for row, line in zip(rows, packed, strict=False)}


def _sampled(line: np.ndarray, row: Row) -> Sampled:
    tops = (len(line) - 2) // 2
    logprobs = line[2 + tops :].view(np.float32)
    wanted = min(row.request.sampling.logprobs or 0, tops)
    alternatives = tuple(Alternative(int(line[2 + i]), float(logprobs[i])) for i in range(wanted))
    return Sampled(int(line[0]), float(line[1:2].view(np.float32)[0]), alternatives)


def _pack_row(line: np.ndarray, row: Row) -> None:
    sampling, request = row.request.sampling, row.request
    seed = sampling.seed % 2**64
    assert request.slot is not None
    line[: len(_INTS)].view(np.uint32)[:] = (
        request.slot,
        row.start + row.count,
        seed & 0xFFFFFFFF,
        seed >> 32,
        sampling.top_k,
    )
    line[len(_INTS) : _SCALARS].view(np.float32)[:] = (
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
    )


def _pack_bias(line: np.ndarray, row: Row) -> None:
    bias = dict(row.request.sampling.logit_bias) | dict.fromkeys(row.request.banned, -np.inf)
    assert len(bias) <= MAX_BIAS, f"{len(bias)} biased ids, at most {MAX_BIAS}"
    line[: len(bias)] = list(bias)
    line[MAX_BIAS:].view(np.float32)[: len(bias)] = list(bias.values())
