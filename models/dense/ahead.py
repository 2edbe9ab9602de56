"""What drafts tokens to come: a layer of its own over the last hidden state and the next token; must not know files.

https://arxiv.org/abs/2404.19737, https://arxiv.org/abs/2412.19437 (multi-token prediction, as DeepSeek V3 has it).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.dense.layout import Layout
from models.dense.record import Dense
from models.linears import Linears
from models.nn import Live, RMSNorm


class Ahead(nnx.Module):
    """Of a token's final hidden state and the embedding of the token behind it a hidden state for the one behind that: both
    normed, side by side through one map, and through a layer of the decoder's. The head makes logits of it; and it takes the
    hidden state's place where still another token is wanted.
    """

    def __init__(self, c: Dense, layout: Layout, layer: Any, make: Linears) -> None:
        width = c.hidden_size
        norms = [RMSNorm(width, c.epsilon, native=layout.native) for _ in range(3)]
        self.embedding_norm, self.hidden_norm, self.norm = norms
        self.fc = make("ahead.fc", ((2 * width, "embed"),), ((width, "embed"),), bias=False, fine=True)
        self.layer = layer

    def joined(self, embedded: jax.Array, hidden: jax.Array, live: Live) -> jax.Array:
        """Both [T, D] -> what its layer begins with, [T, D]."""
        both = [self.embedding_norm(embedded, live), self.hidden_norm(hidden, live)]
        joined: jax.Array = self.fc(jnp.concatenate(both, axis=1), None, live)
        return joined
