"""Made-up models of a few thousand random weights with layers of every kind, for tests of the engine; no files.

A stand-in for families that are not written yet: real `models.spec.Model`s, written down as plainly as can be.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen

from models import rope
from models.nn import rotary_table, rotate
from models.spec import LayerSpec, Mixer, PagedLayer, ParamSpec, RecurrentLayer
from tests.fakes.plain_pass import random_params
from tests.fakes.stepwise import Stepwise

D, F, V = 32, 48, 300
K, G, H = 2, 2, 16
LATENT, TURNED = 16, 8
WINDOW = 24
FREQUENCIES = rope.frequencies(H, 10000.0, {})

Given = tuple[jax.Array, jax.Array]
"""Normed inputs [T, D] and positions [T]."""

DELTA = RecurrentLayer((ParamSpec((K, H, 8), jnp.dtype(jnp.float32), ("kv_heads", None, None)),))
CONVOLUTION = RecurrentLayer((ParamSpec((3, D), jnp.dtype(jnp.float32), (None, None)),))

LAYERS: dict[str, LayerSpec] = {
    "gated delta rule": DELTA,
    "short convolution": CONVOLUTION,
    "latent": PagedLayer(1, K * G, LATENT + TURNED, LATENT),
    "full": PagedLayer(K, G, H, H),
    "window": PagedLayer(K, G, H, H, WINDOW),
    "window, sinks, soft cap, narrow values": PagedLayer(K, G, H, 8, 40, soft_cap=3.0, sinks=True),
}
"""A layer of each kind."""


@frozen(eq=False)
class Kinds:
    """`models.spec.Model` with one layer for each name of LAYERS in `kinds`."""

    kinds: tuple[str, ...]
    architecture: str = "MadeUp"
    vocab_size: int = V
    max_positions: int = 512
    widest: int = F
    experts: tuple[int, int] = (1, 1)
    rules: Sequence[Any] = ()
    coded: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(LAYERS[kind] for kind in self.kinds)

    @property
    def param_specs(self) -> Mapping[str, Any]:
        return {
            "embed": _spec((V, D), "vocab", None),
            "layers": {str(i): _MIX[layer][0] | _MLP for i, layer in enumerate(self.layers)},
        }

    def forward(
        self, params: Any, tokens: jax.Array, positions: jax.Array, mixer: Mixer[Any], cache: Sequence[Any]
    ) -> tuple[jax.Array, tuple[Any, ...]]:
        """See `models.spec.Model`."""
        x, left = params["embed"][tokens], []
        for i, (layer, entry) in enumerate(zip(self.layers, cache, strict=True)):
            weights = params["layers"][str(i)]
            mixed, kept = _MIX[layer][1](layer, weights, (_normed(x), positions), mixer, entry)
            left.append(kept)
            x = x + mixed
            x = x + jax.nn.silu(_normed(x) @ weights["up"]) @ weights["down"]
        return _normed(x), tuple(left)

    def logits(self, params: Any, hidden: jax.Array, live: jax.Array | None = None) -> jax.Array:
        """See `models.spec.Model`."""
        del live
        return hidden @ params["embed"].T


def tiny(*kinds: str) -> tuple[Kinds, Any]:
    """The model with these layers and its parameters, the same on every call."""
    model = Kinds(kinds)
    return model, random_params(model, seed=7)


def _spec(shape: tuple[int, ...], *axes: str | None) -> ParamSpec:
    return ParamSpec(shape, jnp.dtype(jnp.float32), axes or (None,) * len(shape))


_MLP = {"up": _spec((D, F), None, "mlp"), "down": _spec((F, D), "mlp", None)}


def _normed(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)


def _paged_specs(layer: PagedLayer) -> dict[str, ParamSpec]:
    heads = (None, "kv_heads", None)
    specs = {
        "q": _spec((D, K, G, H), None, "kv_heads", None, None),
        "k": _spec((D, K, H), *heads),
        "v": _spec((D, K, layer.v_width), *heads),
        "out": _spec((K, G, layer.v_width, D), "kv_heads", None, None, None),
    }
    return specs | ({"sinks": _spec((K, G), "kv_heads", None)} if layer.sinks else {})


def _paged(layer: PagedLayer, weights: Any, given: Given, mixer: Mixer[Any], cache: Any) -> tuple[jax.Array, Any]:
    x, positions = given
    table = rotary_table(positions, FREQUENCIES)
    q, k, v = (jnp.tensordot(x, weights[name], 1) for name in ("q", "k", "v"))
    q, k = rotate(q, table) * H**-0.5, rotate(k[:, :, None], table)[:, :, 0]
    mixed, cache = mixer.attend(layer, q, k, v, cache, sinks=weights.get("sinks"))
    return jnp.tensordot(mixed, weights["out"], 3), cache


def _delta(layer: RecurrentLayer, weights: Any, given: Given, mixer: Mixer[Any], cache: Any) -> tuple[jax.Array, Any]:
    """The gated delta rule: S' = g S + b k (v - (g S)^T k)^T, read by q. https://arxiv.org/abs/2412.06464"""
    x, _ = given
    q, k, v = (jnp.tensordot(x, weights[name], 1) for name in ("q", "k", "v"))
    gate, rate = (jax.nn.sigmoid(jnp.tensordot(x, weights[name], 1)) for name in ("gate", "rate"))

    def update(state: Any, token: Any) -> Any:
        (before,), (q, k, v, gate, rate) = state, token
        faded = before * gate[:, None, None]
        wrong = v - jnp.einsum("khw,kh->kw", faded, k)
        after = faded + rate[:, None, None] * k[:, :, None] * wrong[:, None]
        return (after,), jnp.einsum("khw,kh->kw", after, q)

    read, cache = mixer.recur(
        layer, Stepwise(update), (q, k / jnp.linalg.norm(k, axis=-1, keepdims=True), v, gate, rate), cache
    )
    return jnp.tensordot(read, weights["out"], 2), cache


def _convolution(
    layer: RecurrentLayer, weights: Any, given: Given, mixer: Mixer[Any], cache: Any
) -> tuple[jax.Array, Any]:
    """The last four inputs, each weighted."""

    def update(state: Any, token: Any) -> Any:
        window = jnp.concatenate([state[0], token[None]])
        return (window[1:],), jnp.sum(window * weights["taps"], axis=0)

    mixed, cache = mixer.recur(layer, Stepwise(update), given[0], cache)
    return jax.nn.silu(mixed) @ weights["out"], cache


def _latent(layer: PagedLayer, weights: Any, given: Given, mixer: Mixer[Any], cache: Any) -> tuple[jax.Array, Any]:
    """Multi-head latent attention, its up-projections drawn into queries and outputs, so that all heads share one key, the
    latent and a rotated part, and one value, the latent. https://arxiv.org/abs/2405.04434, section 2.1"""
    x, positions = given
    table = rotary_table(positions, rope.frequencies(TURNED, 10000.0, {}))
    latent, turned = x @ weights["compress"], x @ weights["k_turned"]
    q = jnp.einsum("tgh,ghl->tgl", jnp.tensordot(x, weights["q"], 1), weights["k_up"])
    q_turned = rotate(jnp.tensordot(x, weights["q_turned"], 1)[:, None], table)[:, 0]
    q = jnp.concatenate([q, q_turned], axis=-1)[:, None] * (H + TURNED) ** -0.5
    k = jnp.concatenate([latent, rotate(turned[:, None, None], table)[:, 0, 0]], axis=-1)[:, None]
    mixed, cache = mixer.attend(layer, q, k, latent[:, None], cache)
    return jnp.einsum("tgl,glh,ghd->td", mixed[:, 0], weights["v_up"], weights["out"]), cache


_LATENT = {
    "compress": _spec((D, LATENT)),
    "k_turned": _spec((D, TURNED)),
    "q": _spec((D, K * G, H)),
    "q_turned": _spec((D, K * G, TURNED)),
    "k_up": _spec((K * G, H, LATENT)),
    "v_up": _spec((K * G, LATENT, H)),
    "out": _spec((K * G, H, D)),
}
_HEADS = (None, "kv_heads", None)
_DELTA = {
    "q": _spec((D, K, H), *_HEADS),
    "k": _spec((D, K, H), *_HEADS),
    "v": _spec((D, K, 8), *_HEADS),
    "gate": _spec((D, K), None, "kv_heads"),
    "rate": _spec((D, K), None, "kv_heads"),
    "out": _spec((K, 8, D), "kv_heads", None, None),
}
_CONVOLUTION = {"taps": _spec((4, D)), "out": _spec((D, D))}

_MIX: dict[LayerSpec, tuple[Mapping[str, ParamSpec], Callable[..., Any]]] = {
    DELTA: (_DELTA, _delta),
    CONVOLUTION: (_CONVOLUTION, _convolution),
    **{layer: (_paged_specs(layer), _paged) for layer in LAYERS.values() if isinstance(layer, PagedLayer)},
    LAYERS["latent"]: (_LATENT, _latent),
}
"""By layer: its parameters, and what it does."""
