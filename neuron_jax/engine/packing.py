"""A step's host inputs as one int32 array up, its results as int32 arrays down. Knows layouts, not policy.

One array per program and direction: a transfer costs far more than its bytes. Floats travel as their bits. What the device
must know of a request beyond a step stands in the line of its slot: sampling parameters, then for each group of layers the
numbers of its pages. It is told of a line only what is news; a step is

    news [NEWS * rows, 2]   a place in the lines, all of them in one row, and what stands there from now on
    rows [rows, 10]         slot, position of the first token, tokens, DRAWS, snapshots of state to begin from (or FOLLOWS,
                            see `recurrent`) and to leave, MASKED, adapter, guesses wanted, the token behind the last where
                            the row draws none
    tokens [tokens]         the rows' tokens one after the other; -1 for the newest of the row's slot
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from attrs import define, field
from jax import lax

from models.native.recurrent import FOLLOWS
from neuron_jax.constraints.matcher import Mask
from neuron_jax.engine.batch import Row
from neuron_jax.engine.buckets import StepKey
from neuron_jax.engine.requests import Request, has_penalties, wants_everything
from neuron_jax.engine.sampler import (
    DRAW,
    FULL,
    GREEDY,
    MAX_ALTERNATIVES,
    MAX_BIAS,
    MOST_COUNTED,
    Past,
    RowParams,
    SamplerOutput,
)
from neuron_jax.workers.frames import Alternative

_INTS = ("seed_low", "seed_high", "top_k", "biased", "need", "full_until")
_FLOATS = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")
_UNSIGNED = ("seed_low", "seed_high", "full_until")
PARAMS = len(_INTS) + len(_FLOATS)
"""Words of a line before its page numbers."""

SILENT, DRAWS, GUESSED = range(3)
"""A row that draws nothing; one that draws; one whose token was guessed, and which draws if the row before it, of the same
slot, has drawn that token."""

NEWS = 16
"""News for each row that a step has room for: a new request with a prompt of some pages, and any growth."""

LOGPROBS = 1 + 2 * MAX_ALTERNATIVES
"""int32 words: the drawn token's log-probability, the likeliest ids and theirs."""

FOREVER = 2**32 - 1

Words = npt.NDArray[np.int32]


class Rows(NamedTuple):
    """The rows of a step on the device, each [R]. `load` and `save` are places of snapshots, 0 for none; `masked`: 1 where the
    row's line of the masks says what it may draw. `adapter` is that of its request, 0 for none. `drafts`: how many tokens
    behind what it draws are to be guessed; `behind`: what stands behind its last where it draws nothing.
    """

    slot: Any
    start: Any
    count: Any
    draws: Any
    load: Any
    save: Any
    masked: Any
    adapter: Any
    drafts: Any
    behind: Any


ROW = len(Rows._fields)
"""Words of a row."""


def step_words(key: StepKey) -> int:
    return 2 * NEWS * key.rows + ROW * key.rows + key.tokens


def line_words(table: int) -> int:
    return PARAMS + table


def slot_words(table: int, vocab: int) -> int:
    return 1 + line_words(table) + 3 * MAX_BIAS + vocab


@define(eq=False)
class Mirror:
    """What the device has been told of every slot, kept on the host, and the words that tell it more.

    `table` is how many page numbers a line has for each of `groups` groups of layers. Every packed array is a new one: the
    device may still read the last while the next is made.
    """

    slots: int
    table: int
    groups: int = 1
    _lines: Words = field(init=False)  # the last is that of padding rows: greedy, trash pages
    _owners: list[tuple[Request, int] | None] = field(init=False)
    _pages: list[list[int]] = field(init=False)  # how many page numbers of each group in a line are its owner's

    def __attrs_post_init__(self) -> None:
        self._lines = np.zeros((self.slots + 1, line_words(self.table * self.groups)), np.int32)
        self._owners = [None] * self.slots
        self._pages = [[] for _ in range(self.slots)]

    def is_new(self, request: Request) -> bool:
        """Whether somebody else had the slot of `request` when the device was last told of it."""
        owner = self._owners[_slot(request)]
        return owner is None or owner[0] is not request or owner[1] != request.stay

    def note(self, request: Request) -> Words:
        """What the device does not know yet of `request`, [news, 2]; from now on it does.

        Of the owner before the last page numbers may stay behind those of the new one, and those of pages that a window has
        left: nobody looks at them.
        """
        slot = _slot(request)
        line, known = self._lines[slot], self._pages[slot]
        counts = [len(pages) for pages in request.pages]
        if not self.is_new(request) and known == counts:
            return np.zeros((0, 2), np.int32)
        before = line.copy()
        if self.is_new(request):
            self._owners[slot], known = (request, request.stay), [0] * self.groups
            _fill(line, request)
        for group, pages in enumerate(request.pages):
            begin = PARAMS + group * self.table
            line[begin + known[group] : begin + counts[group]] = pages[known[group] :]
        self._pages[slot] = counts
        places = np.flatnonzero(line != before)
        return np.stack([slot * line.size + places, line[places]], axis=1).astype(np.int32)

    def pack(self, rows: Sequence[Row], key: StepKey, news: Sequence[Words]) -> Words:
        """int32 [step_words]."""
        packed = np.zeros(step_words(key), np.int32)
        told, lines, tokens = _split(packed, key)
        # Padding says of the trash slot what it knows.
        told[:, 0] = self.slots * self._lines.shape[1]
        lines[:, 0] = self.slots
        fresh = np.concatenate([*news, told[:0]])
        told[: len(fresh)] = fresh
        packed_rows = [line for row in rows for line in _lines_of(row)]
        lines[: len(packed_rows)] = packed_rows
        # In a step of several tokens each row has but its first one here.
        words = [token for row in rows for token in _tokens_of(row, key.steps)]
        tokens[: len(words)] = words
        return packed

    def fill_slot(self, request: Request, vocab: int) -> Words:
        """int32 [slot_words]: slot and line; biases and bans; how often a token was generated, times 2, plus 1 if in the
        prompt."""
        packed = np.zeros(slot_words(self._lines.shape[1] - PARAMS, vocab), np.int32)
        packed[0] = _slot(request)
        line, biases, seen = _split_slot(packed[1:], self._lines.shape[1])
        line[:] = self._lines[_slot(request)]
        ids, bias, until = biases
        entries = [(token, value, FOREVER) for token, value in request.sampling.logit_bias.items()]
        entries += [(token, -np.inf, request.banned_until) for token in request.banned]
        assert len(entries) <= MAX_BIAS, f"{len(entries)} biased ids, at most {MAX_BIAS}"
        for i, (token, value, end) in enumerate(entries):
            ids[i], bias.view(np.float32)[i], until.view(np.uint32)[i] = token, value, end
        seen += 2 * np.bincount(request.tokens[request.prompt_length :], minlength=vocab).astype(np.int32)
        seen[request.tokens[: request.prompt_length]] += 1
        return packed


def masks_of(rows: Sequence[Row], key: StepKey, words: int) -> Words | None:
    """int32 [rows of the device, words]: which tokens the masked ones may draw; None where there are none, and where the
    program of `key` takes none.
    """
    if not key.masked or not any(_masks_of(row) for row in rows):
        return None
    masks = np.zeros((key.rows, words), np.int32)
    at = 0
    for row in rows:
        for line, mask in enumerate(_masks_of(row)):
            masks[at + line] = mask
        at += lines_of(row)
    return masks


def lines_of(row: Row) -> int:
    """How many rows of the device's a row is: one for each token that was guessed, besides its own."""
    return 1 + len(row.guesses)


def unpack(packed: jax.Array, key: StepKey, lines: jax.Array) -> tuple[jax.Array, Rows, jax.Array]:
    """int32 [step_words], lines [S + 1, words] -> the lines with the news, the rows, and the tokens [T]."""
    news, rows, tokens = _split(packed, key)
    told = lines.reshape(-1).at[news[:, 0]].set(news[:, 1], mode="promise_in_bounds")
    return told.reshape(lines.shape), Rows(*rows.T), tokens


def params_of(lines: jax.Array, slot: jax.Array) -> RowParams:
    """The parameters of the rows in `slot` [R]; `position` and `masked` are not known yet."""
    words = lines[slot, :PARAMS]
    columns: dict[str, Any] = {"position": None, "slot": slot, "masked": None}
    for i, name in enumerate(_INTS):
        columns[name] = lax.bitcast_convert_type(words[:, i], jnp.uint32) if name in _UNSIGNED else words[:, i]
    for i, name in enumerate(_FLOATS, start=len(_INTS)):
        columns[name] = lax.bitcast_convert_type(words[:, i], jnp.float32)
    return RowParams(**columns)


def needs_slot_update(request: Request) -> bool:
    """Whether the device must know more of a request than its row says."""
    sampling = request.sampling
    return bool(sampling.logit_bias) or bool(request.banned) or has_penalties(sampling)


def with_slot(past: Past, lines: jax.Array, packed: jax.Array) -> tuple[Past, jax.Array]:
    """`past` and `lines` with one slot's part as `Mirror.fill_slot` made it."""
    slot = packed[0]
    line, (ids, bias, until), seen = _split_slot(packed[1:], lines.shape[1])
    told = Past(
        generated=past.generated.at[slot].set(jnp.minimum(seen >> 1, MOST_COUNTED).astype(jnp.int16)),
        in_prompt=past.in_prompt.at[slot].set((seen & 1) > 0),
        bias_ids=past.bias_ids.at[slot].set(ids),
        bias=past.bias.at[slot].set(lax.bitcast_convert_type(bias, jnp.float32)),
        bias_until=past.bias_until.at[slot].set(lax.bitcast_convert_type(until, jnp.uint32)),
    )
    return told, lines.at[slot].set(line)


def pack_logprobs(drawn: SamplerOutput) -> jax.Array:
    """int32 [R, LOGPROBS]."""
    logprob = lax.bitcast_convert_type(drawn.logprob, jnp.int32)
    top_logprobs = lax.bitcast_convert_type(drawn.top_logprobs, jnp.int32)
    return jnp.concatenate([logprob[:, None], drawn.top_ids, top_logprobs], axis=1)


def unpack_logprobs(line: Words, alternatives: int) -> tuple[float, list[Alternative]]:
    """int32 [LOGPROBS] -> the token's log-probability, and the likeliest tokens with theirs."""
    logprobs = line[1 + MAX_ALTERNATIVES :].view(np.float32)
    likeliest = [Alternative(int(line[1 + i]), float(logprobs[i])) for i in range(alternatives)]
    return float(line[:1].view(np.float32)[0]), likeliest


def _split(packed: Any, key: StepKey) -> tuple[Any, Any, Any]:
    """The parts of a step's words: news [N, 2], rows [R, ROW], tokens [T]."""
    news, rows = 2 * NEWS * key.rows, ROW * key.rows
    return packed[:news].reshape(-1, 2), packed[news : news + rows].reshape(-1, ROW), packed[news + rows :]


def _split_slot(packed: Any, line: int) -> tuple[Any, Any, Any]:
    """The parts of a slot's words behind its number: the line, biases [3, MAX_BIAS], and what was seen [V]."""
    end = line + 3 * MAX_BIAS
    return packed[:line], packed[line:end].reshape(3, MAX_BIAS), packed[end:]


def _lines_of(row: Row) -> list[tuple[int, ...]]:
    more = bool(_masks_of(row)), row.request.adapter, row.drafts, row.behind
    slot, ends = _slot(row.request), (*row.states, *more)
    if not row.guesses:
        return [(slot, row.start, row.count, DRAWS if row.draws else SILENT, *ends)]
    begins: list[tuple[int, ...]] = [(slot, row.start, 1, DRAWS, *ends)]
    follows = ((FOLLOWS, mark) for mark in row.marks) if row.marks else ((0, 0) for _ in row.guesses)
    return begins + [(slot, row.start + i, 1, GUESSED, *states, *more) for i, states in enumerate(follows, start=1)]


def _masks_of(row: Row) -> Sequence[Mask]:
    """What a row may draw, after each of its tokens."""
    matcher = row.request.matcher
    if matcher is None or not matcher.active or not row.draws:
        return ()
    assert len(matcher.masks) >= lines_of(row), "guesses that nobody looked behind"
    return matcher.masks[: lines_of(row)]


def _tokens_of(row: Row, steps: int) -> Sequence[int]:
    if row.fed:
        return row.request.tokens[row.start : row.start + row.count]
    assert row.count == 1 + len(row.guesses) or steps > 1, "tokens that nobody knows"
    # Of a bound text the device may know as the newest token one that could not stay.
    known = row.request.matcher is not None and row.start < len(row.request.tokens)
    return [row.request.tokens[row.start] if known else -1, *row.guesses]


def _fill(line: Words, request: Request) -> None:
    sampling = request.sampling
    seed = sampling.seed % 2**64
    line[: len(_INTS)].view(np.uint32)[:] = (
        seed & 0xFFFFFFFF,
        seed >> 32,
        sampling.top_k,
        needs_slot_update(request),
        FULL if wants_everything(sampling) else DRAW if sampling.temperature > 0 else GREEDY,
        request.banned_until if request.banned else 0,
    )
    line[len(_INTS) : PARAMS].view(np.float32)[:] = (
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
