"""What a model family offers to whoever runs it; knows arrays and names, must not know pages, files, HTTP or hosts.

It imports no JAX: who lists models reads these records, too.

Dimension letters, used all over `models/` and `neuron_jax/engine/`:

    T  tokens in one call (flat: any mix of requests)     D  embedding width
    K  kv heads as laid out (see `HeadLayout`)            G  query heads per kv head
    H  head width                                         F  MLP width
    V  vocabulary                                         L  layers
    R  rows (requests) in one call                        C  tokens per row (chunk)
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from attrs import frozen

from models.gguf import GgufTable

if TYPE_CHECKING:
    import jax

    from models.encoder.texts import Texts
    from models.native.ops import Norm
    from models.native.recurrent import StateRows

Params = Any
"""A pytree of arrays, nested dicts keyed by the names of `Model.param_specs`."""

CacheT = TypeVar("CacheT")

Transform = Callable[[int, "jax.Array"], "jax.Array"]
"""What becomes of the hidden states [T, D] behind layer `int`, from 0 on: others of the same shape and dtype. It is traced into
programs, so it is pure, and a token's result must not depend on other tokens or on where it stands among them."""

CHUNK = 64
"""Tokens of one text that a recurrent layer takes at once, at most."""


class Mixer(Protocol[CacheT]):
    """Lets tokens see each other. A model's runner hands in one for all layers of a call: over pages and rows for serving,
    `models.attend.causal` for a notebook or a test. `cache` is what the runner keeps of this layer, None for `causal`.

    `live` int32 [1]: the first so many tokens are real, and nobody looks at what is computed of the others; None: all are.
    With `rotates` it has `attend_rotated` for every `PagedLayer`: a kernel that norms, rotates and scales as well.
    """

    @property
    def live(self) -> "jax.Array | None": ...

    @property
    def rotates(self) -> bool: ...

    def attend(
        self,
        layer: "PagedLayer",
        q: "jax.Array",
        k: "jax.Array",
        v: "jax.Array",
        cache: CacheT,
        *,
        sinks: "jax.Array | None" = None,
    ) -> "tuple[jax.Array, CacheT]":
        """q [T, K, G, k_width], multiplied by the softmax scale; k [T, K, k_width] and v [T, K, v_width], which are not yet
        in `cache` -> mixed [T, K, G, v_width] and the layer's new cache. `sinks` float32 [K, G] where the layer has them.
        """
        ...

    def attend_rotated(
        self,
        layer: "PagedLayer",
        qkv: "jax.Array",
        rotary: "tuple[jax.Array, jax.Array] | None",
        cache: CacheT,
        *,
        scale: float,
        norms: "tuple[Norm, Norm] | None" = None,
        sinks: "jax.Array | None" = None,
    ) -> "tuple[jax.Array, CacheT]":
        """qkv [T, K, G + 2, H] as projected, `norms` of its queries and of its keys, rotary cos and sin [T, H / 2], None
        where nothing turns -> mixed [T, K, G, H], the layer's new cache.
        """
        ...

    def recur(
        self,
        layer: "RecurrentLayer",
        rule: "Recurrence",
        inputs: Any,
        cache: CacheT,
    ) -> tuple[Any, CacheT]:
        """What `rule` gives for each token behind the one before it in its text. `inputs`, what each token brings, and what is
        returned beside the new cache: trees of [T, ...].
        """
        ...


class Recurrence(Protocol):
    """How a text's state goes from token to token, with a layer's parameters in it. A state is a tuple of arrays as its
    `RecurrentLayer` says; what tokens bring and are given are trees of arrays.
    """

    def step(self, state: Any, token: Any) -> tuple[Any, Any]:
        """The state behind one token, and what it is given."""
        ...

    def chunk(self, state: Any, tokens: Any, count: "jax.Array") -> tuple[Any, Any]:
        """tokens [CHUNK, ...] of one text, of which the first `count` int32 [] are real -> the state behind those, and what
        each is given, [CHUNK, ...]. As `step` one after the other, but for the order of sums.
        """
        ...

    def native(self, tokens: Any, cache: Any, rows: "StateRows") -> tuple[Any, Any]:
        """The same for the rows of a step by a native kernel, where the layer is `native`: tokens [T, ...] and the states
        by slot and by snapshot -> what each is given, [T, ...], and the states, written in place.
        """
        ...

    def on_gpu(
        self, tokens: Any, cache: Any, rows: "StateRows", *, mesh: Any = None, interpret: bool = False
    ) -> tuple[Any, Any]:
        """The same by a kernel for GPUs, where `models.recurrent_rows` does not refuse the layer; on all devices of `mesh`, if
        there is one, each for its own heads; by Pallas' interpreter where asked. No two rows of a step may have one slot unless
        one follows the other, nor may one save what another loads.
        """
        ...


@frozen
class ParamSpec:
    """One parameter before it exists: `shape`, `dtype`, and a logical axis name (or None) per dimension."""

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole parameter, over all devices when sharded."""
        count = 1
        for size in self.shape:
            count *= size
        return count * int(np.dtype(self.dtype).itemsize)


@frozen
class PagedLayer:
    """Attention over the keys and values of all tokens before, or of the last `window` ones, the query's own included; where
    windows are `aligned`, of those from the last multiple of `window` on, which are at most as many.

    Every token leaves k [kv_heads, k_width] and v [kv_heads, v_width], `kv_heads` as laid out (K), each read by `group`
    query heads (G). Scores s become soft_cap * tanh(s / soft_cap) where there is a `soft_cap`. With `sinks` each query head
    has one more score, of a key without a value: it takes its share of the softmax.
    """

    kv_heads: int
    group: int
    k_width: int
    v_width: int
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False
    aligned: bool = False

    def first_seen(self, position: Any) -> Any:
        """Where the keys begin that a query at `position` sees, or before the first one; of a number or of an array of them."""
        if self.window is None:
            return 0
        return position // self.window * self.window if self.aligned else position - self.window + 1


@frozen
class RecurrentLayer:
    """A state of one size, whatever the length of the text, that every token changes and reads: short convolutions, the
    gated delta rule, Mamba's. `state` are its arrays for one text, zeros before the first token. `native`: the native
    kernels have one for it.
    """

    state: tuple[ParamSpec, ...]
    native: bool = False


LayerSpec = PagedLayer | RecurrentLayer
"""What a layer keeps of the tokens it has seen, and how it mixes them."""


class Outline(Protocol):
    """What a family reads of a config before anything is computed, so that it is cheap and needs no JAX: enough to list a
    model, and to say what it would take. `layers` has a spec for each layer that mixes tokens, as it is on one device.
    """

    @property
    def architecture(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def layers(self) -> Sequence[LayerSpec]: ...


class Model(Outline, Protocol):
    """One family bound to one checkpoint's config, a tensor-parallel degree and a quantization. Holds no arrays.

    `param_specs` has the same tree as `Params`. `forward` and `logits` are pure and may be jitted, differentiated and
    instrumented. `layers` are laid out for all its devices, in the order in which `forward` takes their caches.
    `widest` is the number of values of a token's widest activation, in one expert where there are some; `experts` are how many
    a layer has at most, and through how many of them a token goes, (1, 1) where it has one MLP. `rules` maps checkpoint tensors
    to parameters (see `models.mapping`). `tiles` say by path how the native kernels' matrices are laid out; none are for XLA.
    `coded`: the paths of matrices that XLA has as codes because the checkpoint has them so.
    """

    @property
    def widest(self) -> int: ...

    @property
    def experts(self) -> tuple[int, int]: ...

    @property
    def param_specs(self) -> Mapping[str, Any]: ...

    @property
    def rules(self) -> Sequence[Any]: ...

    @property
    def tiles(self) -> Mapping[str, Any]: ...

    @property
    def coded(self) -> Collection[str]: ...

    def forward(
        self,
        params: Params,
        tokens: "jax.Array",
        positions: "jax.Array",
        mixer: Mixer[CacheT],
        cache: Sequence[CacheT],
    ) -> "tuple[jax.Array, tuple[CacheT, ...]]":
        """tokens and positions [T] int32, one cache entry for each of `layers` -> final normed hidden [T, D], new cache."""
        ...

    def transformed(self, transform: Transform) -> "Model":
        """The same with something done to the hidden states behind every layer."""
        ...

    def logits(self, params: Params, hidden: "jax.Array", live: "jax.Array | None" = None) -> "jax.Array":
        """hidden [R, D], of which the first `live` [1] rows are wanted -> float32 logits [R, V]; padding of a sharded
        vocabulary is cut off.
        """
        ...


@runtime_checkable
class Drafter(Model, Protocol):
    """A model that, where it `drafts`, also says what may come behind the next token. The last of `layers` is the one that it
    does so with: `forward` leaves its cache as it is.
    """

    @property
    def drafts(self) -> bool: ...

    def draft(
        self,
        params: Params,
        hidden: "jax.Array",
        text: "tuple[jax.Array, jax.Array]",
        mixer: Mixer[CacheT],
        entry: CacheT,
    ) -> "tuple[jax.Array, CacheT]":
        """hidden [T, D] of `forward`, or of this; `text`, int32 [T] each: the tokens behind those, and where those stand ->
        hidden [T, D], of which `logits` makes those of the tokens behind these, and the last layer's new cache.
        """
        ...


class Embedder(Outline, Protocol):
    """A network of whole texts, bound as a `Model` is. It keeps nothing of a text, so it has no caches and its `layers` are
    none. What it makes of a text is a vector, or a score (`Family.purpose`), of `width` values. `heads` look at once.
    """

    @property
    def width(self) -> int: ...

    @property
    def heads(self) -> int: ...

    @property
    def widest(self) -> int: ...

    @property
    def param_specs(self) -> Mapping[str, Any]: ...

    @property
    def rules(self) -> Sequence[Any]: ...

    def embed(self, params: Params, texts: "Texts") -> "jax.Array":
        """Texts that were packed into rows -> float32 [N, width], one line for each."""
        ...


Config = Mapping[str, Any]

Purpose = Literal["generate", "embed", "score"]
"""What a checkpoint is for: to go on with texts, to make vectors of them, or to say how well two of them go together."""


def generates(_: Config) -> Purpose:
    """What decoders are for."""
    return "generate"


class Build(Protocol):
    """How a family makes its model.

    `config` is the checkpoint's own config.json (GGUF headers are translated to it by `neuron_jax.weights`). It is for
    `tensor_parallel` devices; in each of `expert_parallel` equal parts of them are as large a part of the experts. `quant` is
    "none" (weights in `dtype`), "stored" (the same, but matrices that the checkpoint has in MXFP4 stay so), "int8" (int8
    weights per output channel, dynamic int8 activations), "int4" (rounded in groups of 32) or "fp8" (per output channel;
    activations, too, where the device multiplies float8). With `native`, for one CPU in float32, the kernels of
    `models.native` compute it: "stored" (as the checkpoint has them, exact), "int8" and "int4" (rounded in groups of 32),
    "none" (float32); activations stay float32. `storage` says what the checkpoint's tensors are stored as, by name, for
    "stored". With `draft` it is a `Drafter`. `dtype` None is float32 on a CPU and bfloat16 elsewhere. Raises
    `models.errors.ModelError` with every misfit when `config` asks for something the family does not do.
    """

    def __call__(
        self,
        config: Config,
        *,
        tensor_parallel: int = 1,
        expert_parallel: int = 1,
        quant: str = "none",
        dtype: Any = None,
        native: bool = False,
        storage: Mapping[str, Any] | None = None,
        draft: bool = False,
    ) -> "Model | Embedder": ...


@frozen
class Family:
    """What `models.registry` knows of a family. `architectures` are names in config.json, `model_types` those of configs
    that name no architecture, as the text part of a larger model does. `read` raises ModelError with every misfit.
    `purpose` says what a checkpoint with a config of the family is for. `drafts`: it may be built with what drafts tokens.
    """

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    read: Callable[[Config], Outline]
    build: Build
    gguf: tuple[GgufTable, ...] = ()
    drafts: bool = False
    purpose: Callable[[Config], Purpose] = generates
