"""The step program: a pure function of one model, traced and lowered for each size. Knows shapes, no requests.

A step is one program: what the host has to tell, forward pass, sampling and bookkeeping of the device state, which is
donated and comes back. Whose tokens stand side by side in it, and what they want of the sampler, is data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from attrs import Factory, evolve, frozen
from jax import lax

from models import matrices, mixtures
from models.adapters import Adapters, Chosen
from models.matrices import Shape
from models.mixtures import MixtureShape
from models.sharding import computing_on, named_sharding, replicated
from models.spec import Drafter, Model, PagedLayer, ParamSpec
from neuron_jax.constraints.matcher import mask_words
from neuron_jax.engine import packing, sampler, straight_sampler
from neuron_jax.engine.attention.choose import AttentionChoice
from neuron_jax.engine.attention.kv import LayerCache
from neuron_jax.engine.attention.ragged import Ragged, Table, ragged
from neuron_jax.engine.attention.reference import BLOCK
from neuron_jax.engine.attention.storing import Storing
from neuron_jax.engine.buckets import Draws, Key, SlotKey, StepKey
from neuron_jax.engine.drafting import Drafting, draft
from neuron_jax.engine.mixer import StepMixer
from neuron_jax.engine.page_groups import PageGroups, page_groups
from neuron_jax.engine.products import shapes_in
from neuron_jax.engine.recurrent import Snapshots, state_specs
from neuron_jax.engine.recurring import Recurring, Rules, rules_in

Pool = tuple[LayerCache, ...]


class DeviceState(NamedTuple):
    """Everything that lives on the device besides the parameters. By slot, of which the last is that of padding rows.

    `last_token` [S + 1] int32 is the newest token, whose keys and values are not in `pool` yet. `lines` [S + 1, words] int32
    are sampling parameters and page numbers, see `packing`.
    """

    pool: Pool
    past: sampler.Past
    last_token: Any
    lines: Any


class Result(NamedTuple):
    """What a step brings: tokens int32 [R, steps], -1 for none, and `packing.pack_logprobs` of each, [R, steps, LOGPROBS];
    None of a program that draws by less than everything. `drafts` int32 [R, 1, guesses] are what the model guesses to follow,
    -1 for none; None where it does not, or several steps are one.
    """

    tokens: Any
    logprobs: Any
    drafts: Any = None


@frozen
class Shapes:
    """The sizes that every program is compiled for, besides its key."""

    page_size: int
    pages: tuple[int, ...]  # of each group of layers, without the trash page
    max_slots: int
    max_context: int
    snapshots: int = 0  # of recurrent state, without the trash one
    guesses: bool = False  # whether tokens of texts with such states are guessed
    drafts: int = 0  # tokens that the model itself guesses ahead, at most

    @property
    def table(self) -> int:
        """Page numbers per row and group: the context, rounded up to whole attention blocks."""
        return -(-self.max_context // BLOCK) * BLOCK // self.page_size


@frozen
class Program:
    """Pure functions of one model for one mesh, and the abstract arguments they are compiled for."""

    model: Model
    mesh: jax.sharding.Mesh
    shapes: Shapes
    attention: AttentionChoice
    sample: Callable[..., sampler.SamplerOutput] = sampler.sample
    products: matrices.Choose | None = None  # None: XLA computes them all
    experts: mixtures.Choose | None = None  # the same of mixtures
    adapters: Adapters | None = None
    storing: Storing = Factory(dict)
    recurring: Recurring = Factory(dict)
    drawing: straight_sampler.Drawing | None = None  # None: XLA draws

    @property
    def groups(self) -> PageGroups:
        return page_groups(self.model.layers)

    def abstract_params(self) -> Any:
        return jax.tree.map(
            lambda spec: self._abstract(spec.shape, spec.dtype, spec.axes),
            self.model.param_specs,
            is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
        )

    def abstract_adapters(self) -> Any:
        """The arrays of all adapters, in shapes; nothing where there are none."""
        return jax.tree.map(
            lambda leaf: self._whole(leaf.shape, leaf.dtype), self.adapters.arrays if self.adapters else {}
        )

    def through(self, params: Any, adapters: Any, which: jax.Array) -> Any:
        """What `Model.forward` takes for tokens of these adapters, `which` int32 [T]."""
        return params if self.adapters is None else Chosen(params, adapters, self.adapters.owners, which)

    def abstract_state(self) -> DeviceState:
        """The tree of `DeviceState`, in shapes."""
        slots, vocab = self.shapes.max_slots + 1, self.model.vocab_size
        past = sampler.Past(
            generated=self._whole((slots, vocab), jnp.int16),
            in_prompt=self._whole((slots, vocab), jnp.bool_),
            bias_ids=self._whole((slots, sampler.MAX_BIAS), jnp.int32),
            bias=self._whole((slots, sampler.MAX_BIAS), jnp.float32),
            bias_until=self._whole((slots, sampler.MAX_BIAS), jnp.uint32),
        )
        lines = self._whole((slots, packing.line_words(self.shapes.table * len(self.groups))), jnp.int32)
        return DeviceState(self._abstract_pool(), past, self._whole((slots,), jnp.int32), lines)

    def lower(self, key: Key) -> jax.stages.Lowered:
        """The program of `key`, traced and lowered for this mesh. The state is donated."""
        state, whole = self.abstract_state(), replicated(self.mesh)
        if isinstance(key, SlotKey):
            words = packing.slot_words(self.shapes.table * len(self.groups), self.model.vocab_size)
            fill = jax.jit(_fill_slot, donate_argnums=0, out_shardings=_shardings(state))
            return fill.lower(state, self._whole((words,), jnp.int32))
        # Named outright: left to itself, a mesh of one device would lose the pool's sharding and copy it every step.
        drafts = whole if self.shapes.drafts and key.steps == 1 else None
        out = (_shardings(state), Result(whole, whole if key.everything else None, drafts))
        step = jax.jit(partial(_traced, self, key), donate_argnums=1, out_shardings=out)
        return step.lower(*self._abstract_step(key))

    def matrices(self, key: StepKey) -> tuple[set[Shape], set[MixtureShape]]:
        """Those that `key` multiplies few rows with, and its mixtures of experts."""
        return shapes_in(lambda: jax.eval_shape(partial(_step, self, key), *self._abstract_step(key)))

    def rules(self, key: StepKey) -> Rules:
        """Those by which `key` goes through the states of recurrent layers."""

        def trace(noting: Recurring) -> None:
            jax.eval_shape(partial(_step, evolve(self, recurring=noting), key), *self._abstract_step(key))

        return rules_in(self.model, trace)

    def _abstract_step(self, key: StepKey) -> tuple[Any, ...]:
        told = self._whole((packing.step_words(key),), jnp.int32)
        given = (self.abstract_params(), self.abstract_adapters())
        return given, self.abstract_state(), told, *self.abstract_masks(key)

    def abstract_masks(self, key: StepKey) -> tuple[Any, ...]:
        """What a step may draw, bit by bit, where it is told."""
        return (self._whole((key.rows, mask_words(self.model.vocab_size)), jnp.int32),) if key.masked else ()

    def sampler(self, draws: Draws) -> Callable[..., sampler.SamplerOutput]:
        """What draws in programs of this kind."""
        if self.draws_by_parts(draws):
            return partial(straight_sampler.sample_by_parts, self.mesh)
        return self.sample if draws == Draws.ANY else partial(straight_sampler.sample, draws, drawing=self.drawing)

    def draws_by_parts(self, draws: Draws) -> bool:
        """Whether each device draws from its own part of the vocabulary: where nothing is cut, and it divides."""
        return draws == Draws.PLAIN and self.mesh.size > 1 and self.model.vocab_size % self.mesh.size == 0

    def _abstract_pool(self) -> Any:
        shapes, kv = self.shapes, self.attention.kv
        pages = dict(zip(self.groups, shapes.pages, strict=True))
        pools = [
            kv.pool(layer, pages=pages[layer.window], page_size=shapes.page_size)
            if isinstance(layer, PagedLayer)
            else state_specs(layer, slots=shapes.max_slots, snapshots=shapes.snapshots)
            for layer in self.model.layers
        ]
        return tuple(tuple(self._abstract(leaf.shape, leaf.dtype, leaf.axes) for leaf in pool) for pool in pools)

    def _whole(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self._abstract(shape, dtype, (None,) * len(shape))

    def _abstract(self, shape: tuple[int, ...], dtype: Any, axes: tuple[str | None, ...]) -> Any:
        sharding = named_sharding(self.mesh, axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _traced(
    program: Program, key: StepKey, params: tuple[Any, Any], state: DeviceState, packed: jax.Array, *masks: jax.Array
) -> tuple[DeviceState, Result]:
    with matrices.computing(program.products), mixtures.computing(program.experts), computing_on(program.mesh):
        return _step(program, key, params, state, packed, *masks)


def _step(
    program: Program, key: StepKey, params: tuple[Any, Any], state: DeviceState, packed: jax.Array, *masks: jax.Array
) -> tuple[DeviceState, Result]:
    """A step of `key`, with what the host has to tell: where one token of each row is drawn, with `masks` of what may be.

    `params` are the model's and the adapters'.
    """
    lines, rows, tokens = packing.unpack(packed, key, state.lines)
    state = state._replace(lines=lines)
    if key.steps == 1:
        state, result = _compute(program, params, state, rows, tokens, *masks, key=key)
        return state, jax.tree.map(lambda part: part[:, None], result)

    def once(state: DeviceState, step: Any) -> tuple[DeviceState, Result]:
        """The next token of every row; one that wants fewer steps idles in the slot that nobody reads."""
        live = step < rows.count
        slot = jnp.where(live, rows.slot, program.shapes.max_slots)
        draws = jnp.where(live, rows.draws, packing.SILENT)
        load, save = jnp.where(step == 0, rows.load, 0), jnp.where(live, rows.save, 0)
        free = jnp.zeros_like(slot)
        one = packing.Rows(
            slot, rows.start + step, live.astype(jnp.int32), draws, load, save, free, rows.adapter, free, free
        )
        return _compute(program, params, state, one, jnp.full_like(tokens, -1), key=key)

    state, result = lax.scan(once, state, jnp.arange(key.steps, dtype=jnp.int32))
    return state, jax.tree.map(lambda part: jnp.moveaxis(part, 0, 1), result)


def _compute(
    program: Program,
    params: tuple[Any, Any],
    state: DeviceState,
    rows: packing.Rows,
    tokens: jax.Array,
    *masks: jax.Array,
    key: StepKey,
) -> tuple[DeviceState, Result]:
    """tokens [T] of rows side by side -> the new state, and of each row the token drawn after its last, [R]; -1 where none
    was, or what it was drawn after was guessed wrong.

    All guesses are computed as if they were right. Each token is drawn with the noise of its position, so those up to the
    first wrong guess, that one's correction included, are what one step after the other would have drawn.
    """
    shapes, model = program.shapes, program.model
    where = ragged(_tables(program, state.lines), rows.slot, rows.start, rows.count, tokens.shape[0])
    given = jnp.where(tokens >= 0, tokens, state.last_token[rows.slot[where.row]])
    attention = program.attention
    snapshots = Snapshots(rows.load, rows.save, shapes.page_size, shapes.guesses)

    def mixer_of(where: Ragged) -> StepMixer:
        return StepMixer(
            where,
            attention.of_rows(where),
            attention.rotates,
            snapshots,
            attention.kv,
            program.storing,
            program.recurring,
        )

    mixer = mixer_of(where)
    through = program.through(*params, rows.adapter[where.row])
    hidden, pool = model.forward(through, given, where.position, mixer, state.pool)
    end = jnp.maximum(where.first + rows.count - 1, 0)
    draws = rows.draws > packing.SILENT
    by = packing.params_of(state.lines, rows.slot)._replace(masked=rows.masked)
    wanted = _at(by, rows.start + rows.count, draws)
    logits = _logits(program, key, params[0], hidden[end], None if mixer.live is None else _until(draws))
    drawn = program.sampler(key.draws)(logits, wanted, state.past, *masks)
    counts = draws & _right(rows.draws == packing.GUESSED, given[end], drawn.token)
    followed = jnp.append(counts[1:] & (rows.draws[1:] == packing.GUESSED), False)
    slot = jnp.where(counts, rows.slot, shapes.max_slots)
    newest, drafts = jnp.where(followed, shapes.max_slots, slot), None
    if shapes.drafts:

        def draw(hidden: jax.Array, position: jax.Array, wanted: jax.Array) -> jax.Array:
            logits = _logits(program, key, params[0], hidden, None if mixer.live is None else _until(wanted))
            free = _at(by._replace(masked=jnp.zeros_like(rows.masked)), position, wanted)
            token: jax.Array = program.sampler(key.draws)(logits, free, state.past, *masks).token
            return token

        drafting = Drafting(cast(Drafter, model), params[0], shapes.drafts if key.steps == 1 else 0, mixer_of, draw)
        asking = rows._replace(drafts=jnp.where(counts & ~followed, rows.drafts, 0))
        drafts, entry = draft(drafting, where, asking, (given, hidden, drawn.token), pool[-1])
        pool = (*pool[:-1], entry)
    state = state._replace(
        pool=tuple(pool),
        past=sampler.count(state.past, slot, drawn.token) if key.everything else state.past,
        last_token=state.last_token.at[newest].set(drawn.token, mode="promise_in_bounds"),
    )
    logprobs = packing.pack_logprobs(drawn) if key.everything else None
    return state, Result(jnp.where(counts, drawn.token, -1), logprobs, drafts if key.steps == 1 else None)


def _until(wanted: jax.Array) -> jax.Array:
    """[1], up to which row something is `wanted` [R]: of what is behind it no logits are."""
    return jnp.max(jnp.where(wanted, 1 + jnp.arange(wanted.size, dtype=jnp.int32), 0), keepdims=True)


def _tables(program: Program, lines: jax.Array) -> dict[int | None, Table]:
    """By window the pages of every slot of the layers that see so far."""
    width = program.shapes.table
    begins = range(packing.PARAMS, lines.shape[1], width)
    return {window: Table(lines, at, width) for window, at in zip(program.groups, begins, strict=True)}


def _right(guessed: jax.Array, token: jax.Array, drawn: jax.Array) -> jax.Array:
    """Of each row, whether all that was guessed up to its own `token` [R] is what the rows before have drawn."""
    wrong = guessed & (token != jnp.roll(drawn, 1))
    place = jnp.arange(token.shape[0], dtype=jnp.int32)
    begin = lax.cummax(jnp.where(guessed, 0, place))  # the row that its guesses follow upon
    mistakes = jnp.cumsum(wrong, dtype=jnp.int32)
    return mistakes == mistakes[begin]


def _fill_slot(state: DeviceState, packed: jax.Array) -> DeviceState:
    past, lines = packing.with_slot(state.past, state.lines, packed)
    return state._replace(past=past, lines=lines)


def _at(params: sampler.RowParams, position: jax.Array, wanted: jax.Array) -> sampler.RowParams:
    """What to draw by at `position`, and nothing where it is not `wanted`."""
    need = jnp.where(wanted, params.need, sampler.NOTHING)
    full_until = jnp.where(wanted, params.full_until, jnp.uint32(0))
    return params._replace(position=lax.bitcast_convert_type(position, jnp.uint32), need=need, full_until=full_until)


def _logits(program: Program, key: StepKey, params: Any, hidden: jax.Array, live: Any = None) -> jax.Array:
    """hidden [R, D] -> float32 [R, V], whole on every device unless each draws of its own part; `live`: see `Model.logits`.

    Where they are whole there is one gather, and each device draws by itself. From a sharded vocabulary XLA's way to cut would
    take up to twenty small sums over the devices, those of the search once per round, and shard its counts, which then are
    gathered at the end.
    """
    logits = program.model.logits(params, hidden, live)
    if program.mesh.size == 1:
        return logits
    # First as the product leaves them: asked for whole logits alone, XLA gathers the table and not what it makes of it. One
    # that does not divide was padded and is cut, which it keeps apart by itself; and JAX cannot name such a sharding.
    if logits.shape[-1] % program.mesh.size == 0:
        logits = lax.with_sharding_constraint(logits, named_sharding(program.mesh, (None, "vocab")))
    if program.draws_by_parts(key.draws):
        return logits
    whole: jax.Array = lax.with_sharding_constraint(logits, replicated(program.mesh))
    return whole


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)
