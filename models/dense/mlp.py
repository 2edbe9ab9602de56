"""The MLP of a dense decoder's layer; must not know attention, files or pages.

https://arxiv.org/abs/2302.13971 (gated MLP), https://arxiv.org/abs/2408.00118 (norms before and behind).
"""

import jax
from flax import nnx

from models.dense.layout import Layout
from models.dense.record import Dense
from models.linears import Linears
from models.nn import Live, RMSNorm


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x)); gate and up are one matmul, laid out by device as [devices, 2, F of a device]. Where nothing
    is gated it is that of up alone, [devices, 1, F].
    """

    def __init__(self, c: Dense, layout: Layout, make: Linears) -> None:
        embed, devices, width = (
            (c.hidden_size, "embed"),
            (layout.tensor_parallel, "mlp"),
            (layout.split(c.intermediate_size), None),
        )
        self.norm = RMSNorm(c.hidden_size, c.epsilon, native=layout.native) if c.pre_norms else None
        self.post_norm = RMSNorm(c.hidden_size, c.epsilon, native=layout.native) if c.post_norms else None
        self.gate_up = make("mlp.gate_up", (embed,), (devices, (c.activation.halves, None), width), bias=c.mlp_bias)
        self.down = make("mlp.down", (devices, width), (embed,), bias=c.mlp_bias, fine=True)
        self.activation = c.activation

    def __call__(self, x: jax.Array, live: Live = None, *, onto: jax.Array | None = None) -> jax.Array:
        """x [T, D] -> x, or what it goes `onto`, with what the MLP makes of x, [T, D]."""
        gated = self.gate_up.gated(x, self.activation, self.norm, live)
        return self.down.add(gated, x if onto is None else onto, live, self.post_norm)
