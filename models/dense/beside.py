"""An MLP and a mixture of experts side by side in a layer; must not know attention, files or pages.

https://ai.google.dev/gemma/docs/core/model_card_4 (26B-A4B). Both begin with the same stream, each with norms of its own before
and behind; a third stands behind their sum. The router has a norm of its own as well, and each expert a number that its share
is multiplied by.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.dense.experts import Shared
from models.dense.layout import Layout
from models.dense.record import Dense, Experts
from models.linears import Linears
from models.nn import Live, RMSNorm, parameter


class Beside(nnx.Module):
    """x + norm(norm(MLP(norm(x))) + norm(experts(norm(x))))."""

    def __init__(self, c: Dense, layout: Layout, experts: Experts, make: Linears) -> None:
        width, embed, count = c.hidden_size, ((c.hidden_size, "embed"),), ((experts.count, None),)
        self.norm, self.alone_norm, self.experts_norm, self.sum_norm, self.post_norm, self.router_norm = (
            RMSNorm(width, c.epsilon, native=layout.native) for _ in range(6)
        )
        self.router = make.exact("mlp.router", embed, count, bias=False)
        self.scales = parameter(count, jnp.float32)
        self.experts = make.experts("mlp.experts", experts, c.activation, width, layout.split(experts.width))
        self.shared = Shared(c, layout, experts.shared, make)

    def __call__(self, x: jax.Array, live: Live = None, *, onto: jax.Array | None = None) -> jax.Array:
        """x [T, D] -> x, or what it goes `onto`, with what both make of x, [T, D]."""
        alone = self.alone_norm(self.shared(x, None, self.norm, live), live)
        logits = self.router(x, self.router_norm, live)
        many = self.experts(x, logits, None, scales=self.scales[...], norm=self.experts_norm, live=live)
        both = alone + self.sum_norm(many, live)
        return (x if onto is None else onto) + self.post_norm(both, live)
