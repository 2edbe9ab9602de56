"""A step's host inputs as one int32 array up, its results as int32 arrays down. Knows layouts, not policy.

One array per program and direction: a transfer costs far more than its bytes. Floats travel as their bits. A row is its
request's parameters, its page table, and the few words that change with every step:

    start, count, draws | slot, seed, sampling parameters | page numbers
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from attrs import define, field
from jax import lax

from neuron_jax.engine.batch import Row
from neuron_jax.engine.requests import Request, has_penalties, wants_everything
from neuron_jax.engine.sampler import (
    DRAW,
    FULL,
    GREEDY,
    MAX_ALTERNATIVES,
    MAX_BIAS,
    MOST_COUNTED,
    Drawn,
    Past,
    RowParams,
)
from neuron_jax.workers.frames import Alternative

_START, _COUNT, _DRAWS = range(3)
_INTS = ("slot", "seed_low", "seed_high", "top_k", "biased", "need", "full_until")
_FLOATS = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
_UNSIGNED = ("seed_low", "seed_high", "full_until")
_FIRST_INT = 3
_FIRST_FLOAT = _FIRST_INT + len(_INTS)
_TABLE = _FIRST_FLOAT + len(_FLOATS)

LOGPROBS = 1 + 2 * MAX_ALTERNATIVES
"""int32 words: the drawn token's log-probability, the likeliest ids and theirs."""

FOREVER = 2**32 - 1

Words = npt.NDArray[np.int32]


class Rows(NamedTuple):
    """The rows of a step on the device, each [R]; `table` [R, W]. `position` in `params` is not known yet."""

    start: Any
    count: Any
    draws: Any
    params: RowParams
    table: Any


def decode_width(table: int) -> int:
    return _TABLE + table


def extend_width(table: int, chunk: int) -> int:
    return _TABLE + table + chunk


def verify_width(table: int, width: int) -> int:
    return _TABLE + table + width


def together_width(table: int) -> int:
    return _TABLE + table + 1


def seat_width(vocab: int) -> int:
    return 1 + 3 * MAX_BIAS + vocab


@define(eq=False)
class Mirror:
    """What the rows of all slots look like, kept on the host: packing a step is copying lines and filling in three columns.

    Every packed array is a new one: the device may still read the last while the next is made.
    """

    slots: int
    table: int
    _lines: Words = field(init=False)  # the last is that of padding rows: greedy, no tokens, trash pages, trash slot
    _owners: list[tuple[Request, int] | None] = field(init=False)
    _pages: list[int] = field(init=False)  # how many page numbers a line has

    def __attrs_post_init__(self) -> None:
        self._lines = np.zeros((self.slots + 1, decode_width(self.table)), np.int32)
        self._lines[:, _FIRST_INT] = np.arange(self.slots + 1)
        self._owners = [None] * self.slots
        self._pages = [0] * self.slots

    def seat(self, request: Request) -> bool:
        """Give `request` the line of its slot; whether that is news, because somebody else had it."""
        slot = _slot(request)
        owner = self._owners[slot]
        if owner is not None and owner[0] is request and owner[1] == request.stay:
            return False
        self._owners[slot] = (request, request.stay)
        self._pages[slot] = 0
        line = self._lines[slot]
        line[_FIRST_INT + 1 :] = 0
        _fill(line, request)
        return True

    def decode(self, rows: Sequence[Row], bucket: int) -> Words:
        """int32 [bucket, decode_width]."""
        for row in rows:
            self._note_pages(row.request)
        slots = [_slot(row.request) for row in rows]
        packed: Words = self._lines[slots + [self.slots] * (bucket - len(rows))]
        packed[: len(rows), :_FIRST_INT] = [(row.start, row.count, row.draws) for row in rows]
        return packed

    def verify(self, rows: Sequence[Row], bucket: int, width: int) -> Words:
        """int32 [bucket, verify_width]: rows, and their guesses."""
        packed = np.zeros((bucket, verify_width(self.table, width)), np.int32)
        packed[:, :-width] = self.decode(rows, bucket)
        for line, row in zip(packed, rows, strict=False):
            line[len(line) - width :][: len(row.guesses)] = row.guesses
        return packed

    def extend(self, row: Row, chunk: int) -> Words:
        """int32 [extend_width]: a row, and its tokens."""
        request = row.request
        self._note_pages(request)
        packed = np.zeros(extend_width(self.table, chunk), np.int32)
        end = decode_width(self.table)
        packed[:end] = self._lines[_slot(request)]
        packed[:_FIRST_INT] = (row.start, row.count, row.draws)
        packed[end : end + row.count] = request.tokens[row.start : row.start + row.count]
        return packed

    def together(self, rows: Sequence[Row], bucket: int) -> Words:
        """int32 [bucket, together_width]: a line for every token of `rows`, and the token, -1 where only the device knows."""
        for row in rows:
            self._note_pages(row.request)
        slots = [_slot(row.request) for row in rows for _ in range(row.count)]
        places = [(row, row.start + i) for row in rows for i in range(row.count)]
        packed = np.zeros((bucket, together_width(self.table)), np.int32)
        packed[:, :-1] = self._lines[slots + [self.slots] * (bucket - len(slots))]
        for line, (row, position) in zip(packed, places, strict=False):
            draws = row.draws and position == row.start + row.count - 1
            tokens = row.request.tokens
            line[:_FIRST_INT] = (position, 1, draws)
            line[-1] = tokens[position] if position < len(tokens) else -1
        return packed

    def _note_pages(self, request: Request) -> None:
        slot = _slot(request)
        known, pages = self._pages[slot], request.pages
        if known != len(pages):
            self._lines[slot, _TABLE + known : _TABLE + len(pages)] = pages[known:]
            self._pages[slot] = len(pages)


def unpack_rows(packed: jax.Array) -> Rows:
    """int32 [R, decode_width]."""
    columns: dict[str, Any] = {"position": None}
    for i, name in enumerate(_INTS, start=_FIRST_INT):
        columns[name] = lax.bitcast_convert_type(packed[:, i], jnp.uint32) if name in _UNSIGNED else packed[:, i]
    for i, name in enumerate(_FLOATS, start=_FIRST_FLOAT):
        columns[name] = lax.bitcast_convert_type(packed[:, i], jnp.float32)
    params = RowParams(**columns)
    return Rows(packed[:, _START], packed[:, _COUNT], packed[:, _DRAWS], params, packed[:, _TABLE:])


def needs_seat(request: Request) -> bool:
    """Whether the device must know more of a request than its row says."""
    sampling = request.sampling
    return bool(sampling.logit_bias) or bool(request.banned) or has_penalties(sampling)


def pack_seat(request: Request, vocab: int) -> Words:
    """int32 [seat_width]: the slot; biases and bans; how often a token was generated, times 2, plus 1 if in the prompt."""
    packed = np.zeros(seat_width(vocab), np.int32)
    packed[0] = _slot(request)
    ids, bias, until = packed[1 : 1 + 3 * MAX_BIAS].reshape(3, MAX_BIAS)
    entries = [(token, value, FOREVER) for token, value in request.sampling.logit_bias.items()]
    entries += [(token, -np.inf, request.banned_until) for token in request.banned]
    assert len(entries) <= MAX_BIAS, f"{len(entries)} biased ids, at most {MAX_BIAS}"
    for i, (token, value, end) in enumerate(entries):
        ids[i], bias.view(np.float32)[i], until.view(np.uint32)[i] = token, value, end
    seen = packed[1 + 3 * MAX_BIAS :]
    seen += 2 * np.bincount(request.tokens[request.prompt_length :], minlength=vocab).astype(np.int32)
    seen[request.tokens[: request.prompt_length]] += 1
    return packed


def seated(past: Past, packed: jax.Array) -> Past:
    """`past` with one slot's part as `pack_seat` made it."""
    slot = packed[0]
    ids, bias, until = packed[1 : 1 + 3 * MAX_BIAS].reshape(3, MAX_BIAS)
    seen = packed[1 + 3 * MAX_BIAS :]
    return Past(
        generated=past.generated.at[slot].set(jnp.minimum(seen >> 1, MOST_COUNTED).astype(jnp.int16)),
        in_prompt=past.in_prompt.at[slot].set((seen & 1) > 0),
        bias_ids=past.bias_ids.at[slot].set(ids),
        bias=past.bias.at[slot].set(lax.bitcast_convert_type(bias, jnp.float32)),
        bias_until=past.bias_until.at[slot].set(lax.bitcast_convert_type(until, jnp.uint32)),
    )


def pack_logprobs(drawn: Drawn) -> jax.Array:
    """int32 [R, LOGPROBS]."""
    logprob = lax.bitcast_convert_type(drawn.logprob, jnp.int32)
    top_logprobs = lax.bitcast_convert_type(drawn.top_logprobs, jnp.int32)
    return jnp.concatenate([logprob[:, None], drawn.top_ids, top_logprobs], axis=1)


def unpack_logprobs(line: Words, alternatives: int) -> tuple[float, list[Alternative]]:
    """int32 [LOGPROBS] -> the token's log-probability, and the likeliest tokens with theirs."""
    logprobs = line[1 + MAX_ALTERNATIVES :].view(np.float32)
    likeliest = [Alternative(int(line[1 + i]), float(logprobs[i])) for i in range(alternatives)]
    return float(line[:1].view(np.float32)[0]), likeliest


def _fill(line: Words, request: Request) -> None:
    sampling = request.sampling
    seed = sampling.seed % 2**64
    line[_FIRST_INT:_FIRST_FLOAT].view(np.uint32)[:] = (
        _slot(request),
        seed & 0xFFFFFFFF,
        seed >> 32,
        sampling.top_k,
        needs_seat(request),
        FULL if wants_everything(sampling) else DRAW if sampling.temperature > 0 else GREEDY,
        request.banned_until if request.banned else 0,
    )
    line[_FIRST_FLOAT:_TABLE].view(np.float32)[:] = (
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.repetition_penalty,
    )


def _slot(request: Request) -> int:
    assert request.slot is not None
    return request.slot
