"""What dense decoders differ in, as data: a family's file fills this in; must not know jax, nor any family.

Letters are those of `models.spec`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from attrs import evolve, frozen

from models.config import MOST_EXPERTS
from models.heads import HeadLayout
from models.rope import Rotary
from models.spec import LayerSpec, PagedLayer, ParamSpec, RecurrentLayer

LANES = 16
"""Widths of heads that the native kernels of recurrent states take are multiples of it."""


@frozen
class Activation:
    """What a gate does to its other half, up: act(gate) * up.

    "gelu" is the exact one, "gelu_tanh" its approximation by tanh. With a `limit` gate is at most that and up within it on
    either side. "swiglu_oai" is gate * sigmoid(OAI_SLOPE gate) * (up + 1), gpt-oss's. "relu2" has no gate: max(up, 0)^2.
    """

    kind: Literal["silu", "gelu", "gelu_tanh", "swiglu_oai", "relu2"] = "silu"
    limit: float | None = None

    @property
    def halves(self) -> int:
        """Of gate and up, how many there are."""
        return 1 if self.kind == "relu2" else 2


OAI_SLOPE = 1.702
SILU = Activation()
RELU2 = Activation("relu2")
ACTIVATIONS = {
    "silu": SILU,
    "gelu": Activation("gelu"),
    "gelu_pytorch_tanh": Activation("gelu_tanh"),
    "gelu_new": Activation("gelu_tanh"),
}
"""By their names in config.json's hidden_act and hidden_activation."""


SLIDING, FULL = "sliding_attention", "full_attention"
"""The words of config.json's layer_types."""


LINEAR, CONVOLUTION = "linear_attention", "conv"


@frozen
class GatedDelta:
    """The gated delta rule behind a convolution of queries, keys and values over the last `taps` tokens. Each of the
    `key_heads` queries and keys [key_width] serves value_heads / key_heads values [value_width]. https://arxiv.org/abs/2412.06464
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    taps: int

    @property
    def group(self) -> int:
        return self.value_heads // self.key_heads


@frozen
class ShortConvolution:
    """A gated convolution over the last `taps` tokens, channel by channel. https://arxiv.org/abs/2511.23404"""

    taps: int
    bias: bool = False


@frozen
class Mamba2:
    """A state of each of `heads` [state, width] that fades by a rate of the token's own, and takes it in; behind a convolution
    over the last `taps` tokens. Keys and queries [state] are each of one of `groups`, which share a norm of what is read, too.
    `bias`: of its projections, `taps_bias`: of the convolution. https://arxiv.org/abs/2405.21060
    """

    heads: int
    groups: int
    width: int
    state: int
    taps: int
    epsilon: float
    bias: bool = False
    taps_bias: bool = True


Recurrent = GatedDelta | ShortConvolution | Mamba2
"""What mixes tokens in attention's place."""


@frozen(kw_only=True)
class Experts:
    """The MLP of a layer as `count` MLPs of `width`, of which each token goes through the `active` with the highest scores.

    Its scores are the softmax of a router's logits, or each one's sigmoid. An expert's share of the sum is its score, divided
    by the sum of the chosen ones where `renormalised`, times `scale`; so softmax of the chosen logits alone, as some families
    do it, is softmax, renormalised. With a `correction` each expert has a number that is added to its score for the choice,
    not for the share. Of several `groups`, each of neighbours, only those `kept_groups` are chosen from whose `group_best`
    highest scores have the largest sum. What is added to each token besides comes from an MLP of width `shared`, 0: none,
    multiplied by the sigmoid of a logit of its own with a `shared_gate`. `bias`: the experts' maps have biases, and
    `router_bias`: so has the router. With a `latent` one map makes all experts' inputs, so wide, and one takes their sum back.
    With `share_inputs` a share multiplies what goes into an expert, in place of what it makes.
    `beside`: the shared MLP and the experts have norms of their own, and shares are multiplied by a number of each expert's.
    """

    count: int
    active: int
    width: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    renormalised: bool = True
    scale: float = 1.0
    correction: bool = False
    groups: int = 1
    kept_groups: int = 1
    group_best: int = 2
    shared: int = 0
    shared_gate: bool = False
    bias: bool = False
    router_bias: bool = False
    latent: int = 0
    beside: bool = False
    share_inputs: bool = False

    @property
    def gate(self) -> "Experts":
        """What multiplies the shared MLP, as a mixture of that one."""
        return Experts(count=1, active=1, width=self.shared, scoring="sigmoid", renormalised=False)

    @property
    def misfits(self) -> list[str]:
        """Why these numbers are no mixture; empty when they are."""
        if self.count > MOST_EXPERTS:
            return [f"{self.count} experts are more than the {MOST_EXPERTS} that a layer may have"]
        if self.active > self.count:
            return [f"{self.active} of {self.count} experts cannot be active"]
        if self.groups == 1:
            return []
        each = self.count // self.groups
        if self.count % self.groups or self.kept_groups > self.groups or each < self.group_best:
            return [
                f"{self.count} experts do not divide into {self.groups} groups, of which {self.kept_groups} are kept"
            ]
        if self.kept_groups * each < self.active:
            return [f"{self.kept_groups} groups of {each} experts have not the {self.active} that are active"]
        return []


@frozen
class Latent:
    """Multi-head latent attention: what the keys and values of all heads are made of is one latent of `rank` for each token.

    Of a head's query `still` dimensions meet what is made of the latent, and `turned` turn by position and meet a part of the
    key that all heads share; values are `value` wide. Queries are made of a latent of `query_rank`, None: of the token
    itself. Both latents are normed, with `epsilon`. `split`: the checkpoint has what makes keys and what makes values
    apart, and the former as it is applied to queries.
    """

    rank: int
    still: int
    turned: int
    value: int
    query_rank: int | None = None
    epsilon: float = 1e-6
    split: bool = False


@frozen
class Heads:
    """Attention with heads of sizes of the layer's own, whose values are normed. With `key_is_value` what is projected for a
    key is the value, too. `source` is the number of an earlier layer of the same sizes whose keys and values it reads in
    place of its own. https://ai.google.dev/gemma/docs/core/model_card_4
    """

    kv_heads: int
    head_dim: int
    key_is_value: bool = False
    source: int | None = None

    @property
    def made(self) -> int:
        """How many of key and value it projects."""
        return 0 if self.source is not None else 1 if self.key_is_value else 2


@frozen
class PerLayer:
    """Embeddings of `width` for each token and layer, of a table of `vocab_size`."""

    width: int
    vocab_size: int


@frozen
class Sharpening:
    """Queries are multiplied by 1 + beta log(1 + floor((position + ahead) / original))."""

    beta: float
    original: int
    ahead: int = 0


@frozen
class Layer:
    """What one layer does differently from another. `rotary` None: it does not turn by position.

    `window`, `soft_cap`, `sinks`, `aligned`: see `models.spec.PagedLayer`. `sharpening`: of its far queries. With
    `bare_norms` its queries and keys are normed, and multiplied by no weights. With `latent` it is attention over latents,
    which are one kv head, and `rotary` is that of the part that turns; with `heads` it has heads of its own; with a
    `recurrence` that mixes tokens in attention's place. `experts` None: its MLP is one, of `width`, None: of
    `Dense.intermediate_size`.
    """

    rotary: Rotary | None
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    experts: Experts | None = None
    latent: Latent | None = None
    heads: Heads | None = None
    width: int | None = None
    recurrence: Recurrent | None = None
    mixer: bool = True
    mlp: bool = True
    aligned: bool = False
    sharpening: Sharpening | None = None
    bare_norms: bool = False

    @property
    def source(self) -> int | None:
        """The layer whose keys and values it reads; None: its own."""
        return None if self.heads is None else self.heads.source

    @property
    def mixes(self) -> str:
        """What parameters and tensors of what mixes are called, empty where nothing does."""
        if not self.mixer:
            return ""
        kinds = {GatedDelta: "delta", ShortConvolution: "convolution", Mamba2: "mamba"}
        return "attention" if self.recurrence is None else kinds[type(self.recurrence)]


@frozen(kw_only=True)
class Dense:
    """A dense decoder: attention and MLP in turn, each on the residual stream and added to it; `models.spec.Outline`.

    A norm stands before attention and MLP (`pre_norms`), behind them (`post_norms`), or both. Norms multiply by
    `norm_offset` + w; where they are `centred`, the mean is taken from the stream first. In `parallel` attention and MLP
    both begin with the same stream. `qk_norm` norms each head's query and key before they turn, with `turned_norms` after
    it, or those of all `heads_together`. With an `output_gate` each query comes with a gate, and what it gathers is multiplied
    by sigmoid(gate). Queries are multiplied by `scale`, None: H^-1/2, embeddings by `embedding_scale`, logits by
    `logit_scale`; these become cap * tanh(logits / cap) with a `logit_cap`. `tied`: the embeddings are the head as well.
    `per_layer`: every layer is given embeddings of its own, behind its MLP. `scalars`: behind each layer the stream is
    multiplied by a number of the checkpoint's.
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
    centred: bool = False
    parallel: bool = False
    qk_norm: bool = False
    output_gate: bool = False
    heads_together: bool = False
    turned_norms: bool = False
    scale: float | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    per_layer: PerLayer | None = None
    scalars: bool = False

    @property
    def layers(self) -> Sequence[LayerSpec]:
        """What each layer keeps on one device."""
        return self.kept(self.layers_in(self.kv_heads, self.query_heads // self.kv_heads, 1))

    def of(self, layer: Layer) -> "Dense":
        """The decoder as the MLP of `layer` sees it."""
        return self if layer.width is None else evolve(self, intermediate_size=layer.width)

    @property
    def mixtures(self) -> tuple[Experts, ...]:
        """Each kind of experts that a layer has, once."""
        return tuple(dict.fromkeys(layer.experts for layer in self.stack if layer.experts is not None))

    @property
    def ahead(self) -> Layer:
        """The layer of what drafts tokens: as the last that attends."""
        return next(layer for layer in reversed(self.stack) if layer.mixes == "attention")

    def kept(self, every: Sequence[LayerSpec | None]) -> tuple[LayerSpec, ...]:
        """Without the layers that keep nothing themselves."""
        both = zip(self.stack, every, strict=True)
        return tuple(layer for own, layer in both if own.source is None and layer is not None)

    def layers_in(self, slots: int, group: int, devices: int = 1) -> tuple[LayerSpec | None, ...]:
        """The same of all layers, laid out in so many kv heads, each read by `group` query heads, and recurrent states for
        `devices`. None where nothing mixes.
        """
        return tuple(self._layer_in(layer, slots, group, devices) if layer.mixer else None for layer in self.stack)

    def _layer_in(self, layer: Layer, slots: int, group: int, devices: int) -> LayerSpec:
        if layer.recurrence is None:
            return self._paged(layer, slots, group, devices)
        return recurrent_layer(layer.recurrence, self.hidden_size, devices)

    def _paged(self, layer: Layer, slots: int, group: int, devices: int) -> PagedLayer:
        k_width = v_width = self.head_dim
        if (latent := layer.latent) is not None:
            k_width, v_width = latent.rank + latent.turned, latent.rank
        if (own := layer.heads) is not None:
            k_width = v_width = own.head_dim
            slots, group = own.kv_heads, self.query_heads // own.kv_heads
            if devices > 1:
                heads = HeadLayout.plan(self.query_heads, own.kv_heads, devices)
                slots, group = heads.slots, heads.width
        seen = (layer.window, layer.soft_cap, layer.sinks, layer.aligned)
        return PagedLayer(slots, group, k_width, v_width, *seen)


def recurrent_layer(kind: Recurrent, width: int, devices: int) -> RecurrentLayer:
    """What a layer of a model that is `width` wide keeps of a text: inputs of the convolution, [taps - 1, ...], and a state
    [K, G, key width, value width], its key heads, or groups, being K and G the value heads of each."""
    if isinstance(kind, ShortConvolution):
        channels = -(-width // devices)
        return RecurrentLayer((_state((kind.taps - 1, devices, channels), (None, "mlp", None)),), native=True)
    if isinstance(kind, Mamba2):
        count, groups, keys, values = kind.heads, kind.groups, kind.state, kind.width
    else:
        count, groups, keys, values = kind.value_heads, kind.key_heads, kind.key_width, kind.value_width
    heads = HeadLayout.plan(count, groups, devices)
    inputs = _state((kind.taps - 1, heads.slots, 2 * keys + heads.width * values), (None, "kv_heads", None))
    keyed = (heads.slots, heads.width, keys, values)
    whole = keys % LANES == values % LANES == 0
    return RecurrentLayer((inputs, _state(keyed, ("kv_heads", None, None, None))), native=whole)


def _state(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> ParamSpec:
    return ParamSpec(shape, np.dtype(np.float32), axes)
