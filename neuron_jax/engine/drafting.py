"""Guesses of next tokens by the model's own drafting layer, in the step that draws the token before. Knows rows, no requests.

The layer has keys and values of every token, made of its hidden state and of the token behind it; so it is computed for all
tokens of every step, whoever wants guesses. The token behind a row's last is the one that it has drawn, or the host knows it.

A guess is drawn as the token itself will be, with the noise of its position: so it is right more often than the likeliest one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax

from models.spec import Drafter
from neuron_jax.engine.attention.kv import LayerCache
from neuron_jax.engine.attention.ragged import Ragged, ragged
from neuron_jax.engine.mixer import StepMixer
from neuron_jax.engine.packing import SILENT, Rows


@frozen
class Drafting:
    """`count` guesses at most, by `model` with `params`. `draw`: hidden [R, D], positions [R] and which rows are wanted [R] ->
    tokens [R]. `mixer` is that of any rows.
    """

    model: Drafter
    params: Any
    count: int
    mixer: Callable[[Ragged], StepMixer]
    draw: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def draft(
    d: Drafting, where: Ragged, rows: Rows, text: tuple[jax.Array, jax.Array, jax.Array], entry: LayerCache
) -> tuple[jax.Array, LayerCache]:
    """`text`: the step's tokens [T], their hidden states [T, D], and what each row has drawn [R] -> of each row rows.drafts
    tokens, -1 for those that it does not want, [R, count], and the layer's new cache.
    """
    tokens, hidden, drawn = text
    behind = _behind(where, rows, tokens, drawn)
    ahead, entry = d.model.draft(d.params, hidden, (behind, where.position), d.mixer(where), entry)
    last, found = ahead[jnp.maximum(where.first + rows.count - 1, 0)], list[jax.Array]()
    for number in range(d.count):
        found.append(_drawn(d, last, rows.start + rows.count + 1 + number, rows.drafts > number))
        if number + 1 < d.count:
            on = rows.drafts > number + 1
            single = ragged(where.tables, rows.slot, rows.start + rows.count + number, on.astype(jnp.int32), on.size)
            last, entry = _next(d, single, on, (found[-1], last), entry)
    nothing = jnp.zeros((rows.slot.shape[0], 0), jnp.int32)
    return jnp.stack(found, axis=1) if found else nothing, entry


def _behind(where: Ragged, rows: Rows, tokens: jax.Array, drawn: jax.Array) -> jax.Array:
    """The token behind each of `tokens` [T]."""
    ends = jnp.where(rows.count > 0, where.first + rows.count - 1, tokens.shape[0])
    last = jnp.where(rows.draws > SILENT, drawn, rows.behind)
    return jnp.roll(tokens, -1).at[ends].set(last, mode="drop")


def _drawn(d: Drafting, hidden: jax.Array, position: jax.Array, wanted: jax.Array) -> jax.Array:
    """[R], -1 where not wanted; where nobody wants one the head is not computed."""
    nothing = jnp.full(wanted.shape, -1, jnp.int32)
    drawn: jax.Array = lax.cond(
        jnp.any(wanted), lambda: jnp.where(wanted, d.draw(hidden, position, wanted), nothing), lambda: nothing
    )
    return drawn


def _next(
    d: Drafting, single: Ragged, on: jax.Array, text: tuple[jax.Array, jax.Array], entry: LayerCache
) -> tuple[jax.Array, LayerCache]:
    """Guesses [R] and the hidden states [R, D] that they were drawn by -> hidden states for those behind them, of the rows that
    are `on` [R], which have a token each in `single`.
    """
    place = jnp.where(on, single.first, on.size)
    tokens, hidden = (jnp.zeros_like(part).at[place].set(part, mode="drop") for part in text)
    ahead, entry = d.model.draft(d.params, hidden, (tokens, single.position), d.mixer(single), entry)
    return ahead[jnp.minimum(single.first, on.size - 1)], entry
