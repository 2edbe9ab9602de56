"""What encoders differ in, as data: a family's file fills this in; must not know jax, nor any family."""

from collections.abc import Sequence
from typing import Literal

from attrs import frozen

from models.pooling import Pooling
from models.rope import Rotary
from models.spec import LayerSpec

Kind = Literal["gelu", "gelu_tanh", "relu", "silu"]
"""Of an MLP's activation."""


@frozen
class Layer:
    """What one layer's attention does differently from another's. `rotary` None: it does not turn by position.

    A token sees those up to `reach` before and behind it; None: all of its text.
    """

    rotary: Rotary | None = None
    reach: int | None = None


HeadKind = Literal["tanh", "gelu"]


@frozen
class Classifier:
    """What makes scores of a text's pooled state: dense, `activation`, a norm where there is one, and a map to `labels`."""

    labels: int
    activation: HeadKind = "tanh"
    norm: bool = False
    bias: bool = True


@frozen(kw_only=True)
class Encoder:
    """A network in which the tokens of a text all see each other; `models.spec.Outline`. It keeps nothing of a text.

    A norm stands before attention and MLP and behind the last layer (`pre_norms`), or behind both, on the residual stream.
    With `pre_norms` the first layer's attention has none: the norm of the embeddings is the same. `positions`: how many
    are learned, from `first_position` on; 0: none are, and layers turn. `token_types`: kinds of tokens that are told apart.
    `gated`: the MLP is act(a) * b. `classifier`: it scores texts, rather than to embed them.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    max_positions: int
    epsilon: float
    stack: tuple[Layer, ...]
    pooling: Pooling
    activation: Kind = "gelu"
    positions: int = 0
    first_position: int = 0
    token_types: int = 0
    pre_norms: bool = False
    gated: bool = False
    norm_bias: bool = True
    attention_bias: bool = True
    mlp_bias: bool = True
    classifier: Classifier | None = None

    @property
    def layers(self) -> Sequence[LayerSpec]:
        """None of them keeps anything."""
        return ()

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.heads
