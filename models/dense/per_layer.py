"""What a layer is given beside the residual stream: embeddings of its own for each token; must not know files or pages.

The tokens' own embeddings for every layer stand in one table. They are added to what is made of the usual embeddings, and let
through by a gate behind each layer. Gemma 3n and 4.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.dense.layout import Layout
from models.dense.record import Dense, PerLayer
from models.linears import Linears
from models.matrices import activate
from models.nn import Live, RMSNorm, parameter


class PerLayerInputs(nnx.Module):
    """Embeddings for every layer; see `models.dense.record.PerLayer`."""

    def __init__(self, c: Dense, layout: Layout, kind: PerLayer, make: Linears) -> None:
        self.shape = (len(c.stack), kind.width)
        every = self.shape[0] * kind.width
        self.embed = make.table("per_layer.embed", layout.padded(kind.vocab_size), every)
        self.project = make("per_layer.project", ((c.hidden_size, "embed"),), ((every, None),), bias=False, fine=True)
        self.project_norm = RMSNorm(kind.width, c.epsilon, native=layout.native)
        self.scale = c.hidden_size**-0.5

    def __call__(self, tokens: jax.Array, x: jax.Array, live: Live = None) -> jax.Array:
        """tokens [T], their usual embeddings x [T, D] -> [T, L, width]."""
        made = self.project(x, None, live) * jnp.asarray(self.scale, x.dtype)
        made = self.project_norm(made.reshape(-1, *self.shape), live)
        own = self.embed.rows(tokens, live).reshape(-1, *self.shape)
        own = own * jnp.asarray(self.shape[1] ** 0.5, x.dtype)
        return (made + own) * jnp.asarray(2**-0.5, x.dtype)


class After(nnx.Module):
    """What comes behind a layer: its own embeddings, let through by a gate, and a factor for the whole stream."""

    def __init__(self, c: Dense, layout: Layout, make: Linears) -> None:
        kind, embed = c.per_layer, ((c.hidden_size, "embed"),)
        width = () if kind is None else ((kind.width, None),)
        self.gate = None if kind is None else make("gate", embed, width, bias=False, fine=True)
        self.out = None if kind is None else make("out", width, embed, bias=False, fine=True)
        self.post_norm = None if kind is None else RMSNorm(c.hidden_size, c.epsilon, native=layout.native)
        self.scalar = parameter(((1, None),), jnp.float32) if c.scalars else None
        self.activation = c.activation

    def __call__(self, x: jax.Array, given: jax.Array | None, live: Live = None) -> jax.Array:
        """x [T, D], `given` [T, width] of this layer -> [T, D]."""
        if self.gate is not None and self.out is not None:
            assert given is not None, "a gate and nothing to let through"
            gated = activate(self.activation, self.gate(x, None, live), given)
            x = self.out.add(gated, x, live, self.post_norm)
        return x if self.scalar is None else x * self.scalar[...].astype(x.dtype)[None]
