"""The kernels of recurrent layers as functions of traced arrays, float32 throughout; knows their arguments, no layers.

As those of `models.native.ops`: only for programs of one CPU device, and only where `library.unavailable()` is None.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen

from models.native.ops import Norm

FOLLOWS = -1
"""In place of a snapshot to begin with."""


@frozen
class StateRows:
    """The rows of a step and where their states stand, int32 [R]: row r is the next count[r] tokens of the text in slot[r]
    from position start[r] on, one row after the other. It begins with snapshot load[r] where that is above 0, with zeros
    where start[r] is 0, else with what its slot has. Where save[r] is above 0, the state behind the last multiple of
    `page_size` before its last token goes there, if that is not before its first. With load[r] = FOLLOWS it goes on with what
    the row before it, of the same text, leaves, and that goes to save[r].
    """

    slot: jax.Array
    start: jax.Array
    count: jax.Array
    load: jax.Array
    save: jax.Array
    page_size: int
    guesses: bool = False  # whether rows may follow others, for those who must know it when they are compiled


def short_convolution(
    bcx: jax.Array, states: tuple[jax.Array, ...], rows: StateRows, taps: jax.Array, shift: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """bcx [T, 1, 3, D] are B, C and x; states by slot and by snapshot, [..., N - 1, 1, D]; taps [N, 1, D], shift [1, D] ->
    C * (conv(B x) + shift), [T, 1, D], and the states, written in place.

    Here and in `gated_delta` a token's result is the same bits in whatever rows it and those before it come.
    """
    width = taps.shape[2]
    given = jax.ShapeDtypeStruct((bcx.shape[0], 1, width), jnp.float32)
    kept = [jax.ShapeDtypeStruct(state.shape, state.dtype) for state in states]
    call = jax.ffi.ffi_call("cortex_short_convolution", [given, *kept], input_output_aliases={7: 1, 8: 2})
    out: Any = call(
        bcx.reshape(bcx.shape[0], -1),
        taps.reshape(-1, width),
        *_told(rows),
        *states,
        *([] if shift is None else [shift]),
        page_size=np.int64(rows.page_size),
        shift=shift is not None,
    )
    return out[0], tuple(out[1:])


def gated_delta(
    tokens: tuple[jax.Array, jax.Array, jax.Array],
    states: tuple[jax.Array, ...],
    rows: StateRows,
    parameters: tuple[jax.Array, jax.Array, jax.Array],
    norm: Norm,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """`models.dense.delta.DeltaRule`: tokens qkv [T, K, 2 H + G W], gates [T, K, 2, G] and z [T, K, G, W]; states inputs
    [..., N - 1, K, 2 H + G W] and S [..., K, G, H, W], by slot and then by snapshot; parameters taps [N, K, 2 H + G W], rate
    and shift [K, G] -> [T, K, G, W], and the states, written in place. H and W are multiples of 16.
    """
    (qkv, gates, z), (taps, rate, shift) = tokens, parameters
    kept = [jax.ShapeDtypeStruct(state.shape, state.dtype) for state in states]
    given = jax.ShapeDtypeStruct(z.shape, jnp.float32)
    aliases = {12 + n: 1 + n for n in range(4)}
    call = jax.ffi.ffi_call("cortex_gated_delta", [given, *kept], input_output_aliases=aliases)
    out: Any = call(
        qkv.reshape(qkv.shape[0], -1),
        gates,
        z,
        taps.reshape(taps.shape[0], -1),
        rate,
        shift,
        norm.weight,
        *_told(rows),
        *states,
        page_size=np.int64(rows.page_size),
        epsilon=np.float32(norm.epsilon),
    )
    return out[0], tuple(out[1:])


def mamba(
    tokens: tuple[jax.Array, jax.Array, jax.Array],
    states: tuple[jax.Array, ...],
    rows: StateRows,
    parameters: tuple[jax.Array, ...],
    norm: Norm,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """`models.dense.mamba.MambaRule`: tokens cbx [T, K, 2 H + G W], steps [T, K, G] and z [T, K, G, W]; states as those of
    `gated_delta`; parameters taps [N, K, 2 H + G W] and their bias, rate, shift and skip [K, G]; the norm's weight
    [K, G, W] -> [T, K, G, W], and the states, written in place. H and W are multiples of 16.
    """
    (cbx, steps, z), (taps, bias, *heads) = tokens, parameters
    kept = [jax.ShapeDtypeStruct(state.shape, state.dtype) for state in states]
    given = jax.ShapeDtypeStruct(z.shape, jnp.float32)
    aliases = {14 + n: 1 + n for n in range(4)}
    call = jax.ffi.ffi_call("cortex_mamba", [given, *kept], input_output_aliases=aliases)
    out: Any = call(
        cbx.reshape(cbx.shape[0], -1),
        steps,
        z,
        taps.reshape(taps.shape[0], -1),
        bias,
        *heads,
        norm.weight,
        *_told(rows),
        *states,
        page_size=np.int64(rows.page_size),
        epsilon=np.float32(norm.epsilon),
    )
    return out[0], tuple(out[1:])


def _told(rows: StateRows) -> tuple[jax.Array, ...]:
    return rows.slot, rows.start, rows.count, rows.load, rows.save
