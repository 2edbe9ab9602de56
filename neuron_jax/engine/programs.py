"""The step programs: pure functions of one model, traced and lowered for each key. Knows shapes, no requests.

A step is one program: forward pass, sampling and bookkeeping of the device state, which is donated and comes back. What
rows want of the sampler is data, so that it is no axis of the list of programs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax

from models.sharding import named_sharding, replicated
from models.spec import Model, ParamSpec, live_of
from neuron_jax.engine import packing, sampler
from neuron_jax.engine.attention.choose import Choice
from neuron_jax.engine.attention.kv import LayerCache
from neuron_jax.engine.attention.reference import BLOCK
from neuron_jax.engine.buckets import DecodeKey, ExtendKey, Key, TogetherKey, VerifyKey

Pool = tuple[LayerCache, ...]


class State(NamedTuple):
    """Everything that lives on the device besides the parameters. By slot, of which the last is that of padding rows.

    `last_token` [S + 1] int32 is the newest token, whose keys and values are not in `pool` yet.
    """

    pool: Pool
    past: sampler.Past
    last_token: Any


class Result(NamedTuple):
    """What a step brings: tokens int32 [R, steps], and `packing.pack_logprobs` of each, [R, steps, LOGPROBS]."""

    tokens: Any
    logprobs: Any


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
    attention: Choice
    sample: Callable[[jax.Array, sampler.RowParams, sampler.Past], sampler.Drawn] = sampler.sample

    def abstract_params(self) -> Any:
        return jax.tree.map(
            lambda spec: self._abstract(spec.shape, spec.dtype, spec.axes),
            self.model.param_specs,
            is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
        )

    def abstract_state(self) -> State:
        """The tree of `State`, in shapes."""
        slots, vocab = self.shapes.max_slots + 1, self.model.vocab_size
        past = sampler.Past(
            generated=self._whole((slots, vocab), jnp.int16),
            in_prompt=self._whole((slots, vocab), jnp.bool_),
            bias_ids=self._whole((slots, sampler.MAX_BIAS), jnp.int32),
            bias=self._whole((slots, sampler.MAX_BIAS), jnp.float32),
            bias_until=self._whole((slots, sampler.MAX_BIAS), jnp.uint32),
        )
        return State(self._abstract_pool(), past, self._whole((slots,), jnp.int32))

    def lower(self, key: Key) -> jax.stages.Lowered:
        """The program of `key`, traced and lowered for this mesh. The state is donated."""
        table = self.shapes.table
        match key:
            case DecodeKey(rows, steps):
                return self._lower_step(partial(_decode, self, steps), (rows, packing.decode_width(table)))
            case VerifyKey(rows, width):
                return self._lower_step(partial(_verify, self, width), (rows, packing.verify_width(table, width)))
            case ExtendKey(chunk):
                return self._lower_step(partial(_extend, self, chunk), (packing.extend_width(table, chunk),))
            case TogetherKey(rows):
                return self._lower_step(partial(_together, self), (rows, packing.together_width(table)))
        state = self.abstract_state()
        seat = jax.jit(_seat, donate_argnums=0, out_shardings=_shardings(state))
        return seat.lower(state, self._whole((packing.seat_width(self.model.vocab_size),), jnp.int32))

    def _lower_step(self, function: Any, packed: tuple[int, ...]) -> jax.stages.Lowered:
        state, whole = self.abstract_state(), replicated(self.mesh)
        # Named outright: left to itself, a mesh of one device would lose the pool's sharding and copy it every step.
        out = (_shardings(state), Result(whole, whole))
        step = jax.jit(function, donate_argnums=1, out_shardings=out)
        return step.lower(self.abstract_params(), state, self._whole(packed, jnp.int32))

    def _abstract_pool(self) -> Any:
        spec, shapes = self.model.cache_spec, self.shapes
        leaves = self.attention.kv.layer(
            pages=shapes.pages, page_size=shapes.page_size, kv_heads=spec.kv_heads, head_dim=spec.head_dim
        )
        return (tuple(self._abstract(leaf.shape, leaf.dtype, leaf.axes) for leaf in leaves),) * spec.layers

    def _whole(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._abstract(shape, dtype, (None,) * len(shape))

    def _abstract(self, shape: tuple[int, ...], dtype: Any, axes: tuple[str | None, ...]) -> Any:
        sharding = named_sharding(self.mesh, axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _decode(program: Program, steps: int, params: Any, state: State, packed: jax.Array) -> tuple[State, Result]:
    """The next `steps` tokens of every row; a row that wants fewer idles behind its `count`."""
    rows = packing.unpack_rows(packed)

    def one(state: State, step: Any) -> tuple[State, Result]:
        start, live = rows.start + step, step < rows.count
        # Padding rows and rows that have all they wanted go on with the slot and the page that nobody reads.
        slot = jnp.where(live, rows.params.slot, program.shapes.max_slots)
        tokens = state.last_token[rows.params.slot]
        now = rows._replace(start=start, count=live.astype(jnp.int32))
        hidden, pool, real = _forward(program, params, state.pool, tokens, now)
        logits = _logits(program, params, hidden, real)
        drawn = program.sample(logits, _at(now, start + 1, live), state.past)
        return _advance(state._replace(pool=pool), slot, drawn.token), _result(drawn)

    if steps == 1:
        state, result = one(state, jnp.int32(0))
        return state, jax.tree.map(lambda part: part[:, None], result)
    state, result = lax.scan(one, state, jnp.arange(steps, dtype=jnp.int32))
    return state, jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), result)


def _extend(program: Program, chunk: int, params: Any, state: State, packed: jax.Array) -> tuple[State, Result]:
    """Up to `chunk` tokens of one prompt, and the token after them where the prompt ends here: tokens [1, 1]."""
    rows = packing.unpack_rows(packed[None, : packed.shape[0] - chunk])
    tokens = packed[packed.shape[0] - chunk :]
    hidden, pool, _ = _forward(program, params, state.pool, tokens, rows)
    last = lax.dynamic_slice_in_dim(hidden, jnp.maximum(rows.count[0] - 1, 0), 1)
    draws = rows.draws[0] > 0
    params_row = _at(rows, rows.start + rows.count, rows.draws > 0)
    drawn: sampler.Drawn = lax.cond(
        draws,
        lambda: program.sample(_logits(program, params, last), params_row, state.past),
        lambda: sampler.nothing(1),
    )
    slot = jnp.where(draws, rows.params.slot, program.shapes.max_slots)
    state = _advance(state._replace(pool=pool), slot, drawn.token)
    return state, jax.tree.map(lambda part: part[:, None], _result(drawn))


def _verify(program: Program, width: int, params: Any, state: State, packed: jax.Array) -> tuple[State, Result]:
    """The next token of every row, and those after it up to the first that was guessed wrong: tokens [R, 1 + width].

    All guesses are computed as if they were right. Each token is drawn with the noise of its position, so those up to the
    first wrong guess, that one's correction included, are what one step after the other would have drawn.
    """
    rows, guesses = packing.unpack_rows(packed[:, :-width]), packed[:, -width:]
    tokens = jnp.concatenate([state.last_token[rows.params.slot][:, None], guesses], axis=1)
    hidden, pool, live = _forward(program, params, state.pool, tokens.reshape(-1), rows)
    place = jnp.arange(1 + width, dtype=jnp.int32)[None, :]
    each = rows._replace(params=jax.tree.map(lambda part: jnp.repeat(part, 1 + width, axis=0), rows.params))
    real = place < rows.count[:, None]
    wanted = _at(each, (rows.start[:, None] + 1 + place).reshape(-1), real.reshape(-1))
    drawn = program.sample(_logits(program, params, hidden, live), wanted, state.past)
    token = drawn.token.reshape(tokens.shape)
    right = (token[:, :-1] == guesses) & real[:, 1:]
    last = jnp.cumprod(right.astype(jnp.int32), axis=1).sum(axis=1, dtype=jnp.int32)[:, None]
    slot = jnp.where(rows.count > 0, rows.params.slot, program.shapes.max_slots)
    # Rows that were guessed for have no penalties: what they count does not matter.
    state = _advance(state._replace(pool=pool), slot, jnp.take_along_axis(token, last, axis=1)[:, 0])
    logprobs = packing.pack_logprobs(drawn).reshape(*tokens.shape, packing.LOGPROBS)
    return state, Result(jnp.where(place <= last, token, -1), logprobs)


def _together(program: Program, params: Any, state: State, packed: jax.Array) -> tuple[State, Result]:
    """One token a row, whosever it is and whether of a prompt or the newest: tokens [R, 1], of the rows that draw.

    A token goes through the same operations of the same sizes in every step, so what it gets depends on its own past alone
    wherever a row of a product does not depend on the other rows and its place among them.
    """
    rows, given = packing.unpack_rows(packed[:, :-1]), packed[:, -1]
    tokens = jnp.where(given >= 0, given, state.last_token[rows.params.slot])
    hidden, pool, real = _forward(program, params, state.pool, tokens, rows)
    draws = rows.draws > 0
    drawn = program.sample(program.model.logits(params, hidden, real), _at(rows, rows.start + 1, draws), state.past)
    slot = jnp.where(draws, rows.params.slot, program.shapes.max_slots)
    state = _advance(state._replace(pool=pool), slot, drawn.token)
    return state, jax.tree.map(lambda part: part[:, None], _result(drawn))


def _seat(state: State, packed: jax.Array) -> State:
    return state._replace(past=packing.seated(state.past, packed))


def _forward(
    program: Program, params: Any, pool: Pool, tokens: jax.Array, rows: packing.Rows
) -> tuple[jax.Array, Pool, jax.Array | None]:
    """tokens [R*C], the first `rows.count` of each row real -> hidden [R*C, D], the new pool, and of how many tokens, the
    first ones, something was computed, [1]; None for all.
    """
    chunk = tokens.shape[0] // rows.table.shape[0]
    attend = program.attention.make(rows.table, rows.start, rows.count, chunk)
    positions = rows.start[:, None] + jnp.arange(chunk, dtype=jnp.int32)[None, :]
    # Padding may reach past the last position that the rotary table of a model knows.
    positions = jnp.minimum(positions, program.model.max_positions - 1).reshape(-1)
    hidden, pool = program.model.forward(params, tokens, positions, attend, pool)
    return hidden, tuple(pool), live_of(attend)


def _logits(program: Program, params: Any, hidden: jax.Array, live: jax.Array | None = None) -> jax.Array:
    """hidden [R, D] -> float32 [R, V], whole on every device.

    One gather, and each device draws by itself. From a sharded vocabulary the sampler would take up to twenty small sums
    over the devices, those of the bisection once per round, and shard its counts, which then are gathered at the end.
    """
    logits = program.model.logits(params, hidden, live)
    # First as the product leaves them: asked for whole logits alone, XLA gathers the table and not what it makes of it. One
    # that does not divide was padded and is cut, which it keeps apart by itself; and JAX cannot name such a sharding.
    if logits.shape[-1] % program.mesh.size == 0:
        logits = lax.with_sharding_constraint(logits, named_sharding(program.mesh, (None, "vocab")))
    whole: jax.Array = lax.with_sharding_constraint(logits, replicated(program.mesh))
    return whole


def _at(rows: packing.Rows, position: jax.Array, wanted: jax.Array) -> sampler.RowParams:
    """What to draw by at `position`, and nothing where it is not `wanted`."""
    need = jnp.where(wanted, rows.params.need, sampler.NOTHING)
    full_until = jnp.where(wanted, rows.params.full_until, jnp.uint32(0))
    return rows.params._replace(
        position=lax.bitcast_convert_type(position, jnp.uint32), need=need, full_until=full_until
    )


def _advance(state: State, slot: jax.Array, token: jax.Array) -> State:
    last = state.last_token.at[slot].set(token, mode="promise_in_bounds")
    return state._replace(past=sampler.count(state.past, slot, token), last_token=last)


def _result(drawn: sampler.Drawn) -> Result:
    return Result(drawn.token, packing.pack_logprobs(drawn))


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
