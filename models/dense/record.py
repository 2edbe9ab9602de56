"""What dense decoders differ in, as data: a family's file fills this in; must not know jax, nor any family.

Letters are those of `models.spec`.
"""

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from models.rope import Rotary
from models.spec import PagedLayer


@frozen
class Activation:
    """What a gate does to its other half, up: act(gate) * up.

    "gelu" is the exact one, "gelu_tanh" its approximation by tanh. With a `limit` gate is at most that and up within it on
    either side. "swiglu_oai" is gate * sigmoid(1.702 gate) * (up + 1), gpt-oss's.
    """

    kind: Literal["silu", "gelu", "gelu_tanh", "swiglu_oai"] = "silu"
    limit: float | None = None


SILU = Activation()
ACTIVATIONS = {
    "silu": SILU,
    "gelu": Activation("gelu"),
    "gelu_pytorch_tanh": Activation("gelu_tanh"),
    "gelu_new": Activation("gelu_tanh"),
}
"""By their names in config.json's hidden_act and hidden_activation."""


SLIDING, FULL = "sliding_attention", "full_attention"
"""The words of config.json's layer_types."""


@frozen
class Layer:
    """What one layer's attention does differently from another's. `rotary` None: it does not turn by position.

    `window`, `soft_cap`, `sinks`: see `models.spec.PagedLayer`.
    """

    rotary: Rotary | None
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False


@frozen
class Sharpening:
    """Queries beyond `original` positions are multiplied by 1 + beta log(1 + floor(position / original))."""

    beta: float
    original: int


@frozen(kw_only=True)
class Dense:
    """A dense decoder: attention and MLP in turn, each on the residual stream and added to it; `models.spec.Outline`.

    A norm stands before attention and MLP (`pre_norms`), behind them (`post_norms`), or both. Norms multiply by `norm_offset`
    + w. `qk_norm` norms each head's query and key before they turn. Queries are multiplied by `scale`, None: H^-1/2, and far
    ones by what `sharpening` says; embeddings by `embedding_scale`, logits by `logit_scale`; these become
    cap * tanh(logits / cap) with a `logit_cap`. `tied`: the embeddings are the head as well.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    query_heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    epsilon: float
    stack: tuple[Layer, ...]
    tied: bool = False
    activation: Activation = SILU
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    norm_offset: float = 0.0
    qk_norm: bool = False
    scale: float | None = None
    sharpening: Sharpening | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None

    @property
    def layers(self) -> Sequence[PagedLayer]:
        """What each layer keeps on one device."""
        return self.layers_in(self.kv_heads, self.query_heads // self.kv_heads)

    def layers_in(self, slots: int, group: int) -> tuple[PagedLayer, ...]:
        """The same laid out in so many kv heads, each read by `group` query heads."""
        h = self.head_dim
        return tuple(PagedLayer(slots, group, h, h, layer.window, layer.soft_cap, layer.sinks) for layer in self.stack)
