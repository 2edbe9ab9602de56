"""The network of an encoder: embeddings, attention, MLP and a head, as an `Encoder` says; must not know files.

https://arxiv.org/abs/1810.04805 (BERT: learned positions, norms behind), https://arxiv.org/abs/2412.13663 (ModernBERT:
rotary, norms before, gated MLP, windows).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from models.encoder.record import Classifier, Encoder, Layer
from models.encoder.texts import Texts, attend, normalized, pool
from models.nn import parameter, rotary_table, rotate
from models.rope import Rotary

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class LayerNorm(nnx.Module):
    """Mean 0 and variance 1 over the last axis, in float32. https://arxiv.org/abs/1607.06450."""

    def __init__(self, width: int, epsilon: float, *, bias: bool) -> None:
        self.epsilon = epsilon
        self.weight = parameter(((width, "embed"),), jnp.float32)
        self.bias = parameter(((width, "embed"),), jnp.float32) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, D] -> the same, in the dtype of x."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        scale = lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
        y = centred * scale * self.weight[...][None]
        return (y if self.bias is None else y + self.bias[...][None]).astype(x.dtype)


class Map(nnx.Module):
    """x W + b."""

    def __init__(self, inputs: int, outputs: int, dtype: Any, *, bias: bool) -> None:
        self.kernel = parameter(((inputs, None), (outputs, None)), dtype)
        self.bias = parameter(((outputs, None),), dtype) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [T, inputs] -> [T, outputs]."""
        y = x @ self.kernel[...]
        return y if self.bias is None else y + self.bias[...][None]


class Table(nnx.Module):
    """Vectors that are looked up."""

    def __init__(self, count: int, width: int, dtype: Any) -> None:
        self.kernel = parameter(((count, None), (width, "embed")), dtype)

    def __call__(self, rows: jax.Array) -> jax.Array:
        """rows int32 [T] -> [T, D]."""
        return self.kernel[...][rows]


class Block(nnx.Module):
    """One layer."""

    def __init__(self, c: Encoder, layer: Layer, dtype: Any, *, first: bool) -> None:
        d, f = c.hidden_size, c.intermediate_size
        norm = partial(LayerNorm, d, c.epsilon, bias=c.norm_bias)
        self.attention_norm = None if c.pre_norms and first else norm()
        self.mlp_norm = norm()
        self.qkv = Map(d, 3 * d, dtype, bias=c.attention_bias)
        self.out = Map(d, d, dtype, bias=c.attention_bias)
        self.up = Map(d, 2 * f if c.gated else f, dtype, bias=c.mlp_bias)
        self.down = Map(f, d, dtype, bias=c.mlp_bias)
        self.c, self.layer = c, layer

    def __call__(self, x: jax.Array, texts: Texts, turns: dict[Rotary | None, Any]) -> jax.Array:
        """x [T, D] -> [T, D]."""
        if self.c.pre_norms:
            x = x + self._mix(x if self.attention_norm is None else self.attention_norm(x), texts, turns)
            return x + self._mlp(self.mlp_norm(x))
        assert self.attention_norm is not None, "norms behind are in every layer"
        x = self.attention_norm(x + self._mix(x, texts, turns))
        return self.mlp_norm(x + self._mlp(x))

    def _mix(self, x: jax.Array, texts: Texts, turns: dict[Rotary | None, Any]) -> jax.Array:
        heads, size = self.c.heads, self.c.head_dim
        q, k, v = jnp.split(self.qkv(x).reshape(-1, 3 * heads, 1, size), 3, axis=1)
        turn = turns[self.layer.rotary]
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        mixed = attend(q * size**-0.5, k[:, :, 0], v[:, :, 0], texts.owner, reach=self.layer.reach)
        return self.out(mixed.reshape(x.shape))

    def _mlp(self, x: jax.Array) -> jax.Array:
        act, up = ACTIVATIONS[self.c.activation], self.up(x)
        if not self.c.gated:
            return self.down(act(up))
        gate, other = jnp.split(up, 2, axis=-1)
        return self.down(act(gate) * other)


class Head(nnx.Module):
    """Scores of pooled states."""

    def __init__(self, c: Encoder, classifier: Classifier) -> None:
        d = c.hidden_size
        self.dense = Map(d, d, jnp.float32, bias=classifier.bias)
        self.norm = LayerNorm(d, c.epsilon, bias=c.norm_bias) if classifier.norm else None
        self.scores = Map(d, classifier.labels, jnp.float32, bias=True)
        self.activation = classifier.activation

    def __call__(self, pooled: jax.Array) -> jax.Array:
        """pooled float32 [N, D] -> [N, labels]."""
        x = ACTIVATIONS[self.activation](self.dense(pooled))
        return self.scores(x if self.norm is None else self.norm(x))


class EncoderNetwork(nnx.Module):
    """All of it."""

    def __init__(self, c: Encoder, dtype: Any) -> None:
        d = c.hidden_size
        self.c = c
        self.tokens = Table(c.vocab_size, d, dtype)
        self.positions = Table(c.positions, d, dtype) if c.positions else None
        self.types = Table(c.token_types, d, dtype) if c.token_types else None
        self.embedding_norm = LayerNorm(d, c.epsilon, bias=c.norm_bias)
        self.layers = nnx.List([Block(c, layer, dtype, first=index == 0) for index, layer in enumerate(c.stack)])
        self.norm = LayerNorm(d, c.epsilon, bias=c.norm_bias) if c.pre_norms else None
        self.head = None if c.classifier is None else Head(c, c.classifier)

    def hidden(self, texts: Texts) -> jax.Array:
        """-> [T, D]."""
        positions = texts.positions.reshape(-1)
        rotaries = dict.fromkeys(layer.rotary for layer in self.c.stack)
        turns = {rotary: None if rotary is None else _turn(rotary, positions) for rotary in rotaries}
        x = self.tokens(texts.tokens.reshape(-1))
        if self.types is not None:
            x = x + self.types(jnp.minimum(texts.types.reshape(-1), self.c.token_types - 1))
        if self.positions is not None:
            x = x + self.positions(positions + self.c.first_position)
        x = self.embedding_norm(x)
        for layer in self.layers:
            x = layer(x, texts, turns)
        return x if self.norm is None else self.norm(x)

    def __call__(self, texts: Texts) -> jax.Array:
        """-> float32 [N, D], or [N, labels] with a head."""
        pooled = pool(self.hidden(texts), texts, self.c.pooling)
        if self.head is not None:
            return self.head(pooled)
        return normalized(pooled) if self.c.pooling.normalize else pooled


def _turn(rotary: Rotary, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    return rotary_table(positions, np.array(rotary.frequencies, np.float32))
