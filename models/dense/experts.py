"""A layer's mixture of experts in place of its MLP; must not know attention, files or pages.

https://arxiv.org/abs/1701.06538 (experts), https://arxiv.org/abs/2401.06066 (shared ones).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.dense.layout import Layout
from models.dense.record import Dense, Experts
from models.linears import Linears
from models.nn import Live, RMSNorm, parameter


class Mixture(nnx.Module):
    """The sum of the experts that a router chooses, by their shares, and of an MLP that they may share."""

    def __init__(self, c: Dense, layout: Layout, experts: Experts, make: Linears) -> None:
        width, embed = c.hidden_size, ((c.hidden_size, "embed"),)
        self.norm = RMSNorm(width, c.epsilon, native=layout.native) if c.pre_norms else None
        self.post_norm = RMSNorm(width, c.epsilon, native=layout.native) if c.post_norms else None
        self.router = make.exact("mlp.router", embed, ((experts.count, None),), bias=experts.router_bias)
        self.correction = parameter(((experts.count, None),), jnp.float32) if experts.correction else None
        within = experts.latent or width
        self.experts = make.experts(
            "mlp.experts", experts, c.activation, within, layout.of_experts.split(experts.width)
        )
        narrow = ((experts.latent, "embed"),)
        self.into = make("mlp.into", embed, narrow, bias=False) if experts.latent else None
        self.back = make("mlp.back", narrow, embed, bias=False, fine=True) if experts.latent else None
        self.shared = _shared(c, layout, experts, make) if experts.shared else None

    def __call__(self, x: jax.Array, live: Live = None, *, onto: jax.Array | None = None) -> jax.Array:
        """x [T, D] -> x, or what it goes `onto`, with what the experts make of x, [T, D]."""
        onto = x if onto is None else onto
        total = None if self.post_norm is not None else onto
        if self.shared is not None:
            total = self.shared(x, total, self.norm, live)
        logits, correction = self.router(x, self.norm, live), self.correction
        given = None if correction is None else correction[...]
        if self.into is None or self.back is None:
            total = self.experts(x, logits, total, correction=given, norm=self.norm, live=live)
        else:
            latent = self.experts(self.into(x, self.norm, live), logits, None, correction=given, live=live)
            total = self.back(latent, None, live) if total is None else self.back.add(latent, total, live)
        return total if self.post_norm is None else onto + self.post_norm(total, live)


class Shared(nnx.Module):
    """The MLP that every token goes through."""

    def __init__(self, c: Dense, layout: Layout, width: int, make: Linears) -> None:
        embed, devices, size = (c.hidden_size, "embed"), (layout.tensor_parallel, "mlp"), (layout.split(width), None)
        halves = (c.activation.halves, None)
        self.gate_up = make("mlp.shared.gate_up", (embed,), (devices, halves, size), bias=False)
        self.down = make("mlp.shared.down", (devices, size), (embed,), bias=False, fine=True)
        self.activation = c.activation

    def __call__(self, x: jax.Array, residual: jax.Array | None, norm: RMSNorm | None, live: Live) -> jax.Array:
        """x [T, D] -> the residual and what it makes of norm(x), [T, D]."""
        gated = self.gate_up.gated(x, self.activation, norm, live)
        return self.down(gated, None, live) if residual is None else self.down.add(gated, residual, live)


class GatedShared(nnx.Module):
    """The same, multiplied by the sigmoid of a logit: a mixture of one expert."""

    def __init__(self, c: Dense, layout: Layout, experts: Experts, make: Linears) -> None:
        self.router = make.exact("mlp.shared.router", ((c.hidden_size, "embed"),), ((1, None),), bias=False)
        width = layout.split(experts.shared)
        self.experts = make.experts("mlp.shared.experts", experts.gate, c.activation, c.hidden_size, width)

    def __call__(self, x: jax.Array, residual: jax.Array | None, norm: RMSNorm | None, live: Live) -> jax.Array:
        """As `Shared`."""
        return self.experts(x, self.router(x, norm, live), residual, norm=norm, live=live)


def _shared(c: Dense, layout: Layout, experts: Experts, make: Linears) -> Shared | GatedShared:
    return GatedShared(c, layout, experts, make) if experts.shared_gate else Shared(c, layout, experts.shared, make)
