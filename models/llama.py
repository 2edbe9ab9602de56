"""The Llama family: Llama 2 and 3, SmolLM2, TinyLlama, Mistral; knows jax and flax, must not know files or pages.

Read from top to bottom: config, blocks, model, checkpoint table, build. Letters are those of `models.spec`.
https://arxiv.org/abs/2302.13971, https://arxiv.org/abs/2407.21783, https://arxiv.org/abs/2310.06825.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen
from flax import nnx

from models import rope
from models.blocks import Array, Storage
from models.errors import ModelError
from models.functional import Functional, functional
from models.heads import HeadLayout
from models.linears import Linears, check, linear_store, table_store, tile, untiled
from models.mapping import Ignore, Part, Rule, Store, store_as, unroll
from models.native.tiles import Tiles
from models.nn import Live, RMSNorm, rotary_table, rotate
from models.registry import architecture
from models.spec import CacheT, Mixer, PagedLayer, Params

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


@frozen
class LlamaConfig:
    """What the family reads of a config.json, checked."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    epsilon: float
    theta: float
    scaling: Mapping[str, Any]
    window: int | None
    tied: bool
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Self:
        """Raises ModelError with every misfit."""
        name = architecture(config)
        wrong = _misfits(config)
        if wrong:
            raise ModelError(f"config of {name}", wrong)
        heads = config["num_attention_heads"]
        # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
        rotary = config.get("rope_parameters") or {}
        return cls(
            architecture=name,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            query_heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=_head_dim(config),
            max_positions=config["max_position_embeddings"],
            epsilon=float(config.get("rms_norm_eps", 1e-6)),
            theta=float(rotary.get("rope_theta", config.get("rope_theta", 10000.0))),
            scaling=_scaling(config),
            window=config.get("sliding_window") if name == "MistralForCausalLM" else None,
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
        )


def _head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _scaling(config: Mapping[str, Any]) -> Mapping[str, Any]:
    scaling: Mapping[str, Any] = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return scaling


def _misfits(config: Mapping[str, Any]) -> list[str]:
    wrong = [
        f"{key} is {config.get(key)!r}, must be a positive integer" for key in _SIZES if not _size(config.get(key))
    ]
    optional = [key for key in ("num_key_value_heads", "head_dim", "sliding_window") if config.get(key) is not None]
    wrong += [f"{key} is {config[key]!r}, must be a positive integer" for key in optional if not _size(config[key])]
    if wrong:
        return wrong
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    if heads % kv_heads:
        wrong.append(f"{heads} attention heads do not divide among {kv_heads} key-value heads")
    if _head_dim(config) % 2:
        wrong.append(f"head_dim is {_head_dim(config)}, must be even for rotary embedding")
    if config.get("hidden_act", "silu") != "silu":
        wrong.append(f"hidden_act is {config['hidden_act']!r}, must be 'silu'")
    rotary = _scaling(config)
    if (rotary.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        wrong.append("partial_rotary_factor must be 1.0")
    return wrong + rope.misfits(rotary, _head_dim(config))


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


@frozen
class Layout:
    """How a config's sizes are laid out over `tensor_parallel` devices, padded where they do not divide.

    `mlp` is the width on one device, `vocab` the whole.
    """

    heads: HeadLayout
    tensor_parallel: int
    mlp: int
    vocab: int
    quant: str
    dtype: Any
    native: bool

    @classmethod
    def plan(cls, c: LlamaConfig, tensor_parallel: int, quant: str, dtype: Any, native: bool) -> Self:
        heads = HeadLayout.plan(c.query_heads, c.kv_heads, tensor_parallel)
        mlp = -(-c.intermediate_size // tensor_parallel)
        vocab = -(-c.vocab_size // tensor_parallel) * tensor_parallel
        return cls(heads, tensor_parallel, mlp, vocab, quant, dtype, native)

    @property
    def wide(self) -> Any:
        """The dtype that matrices are assembled in, before they are rounded; None = as stored."""
        if self.native:
            return np.dtype(np.float32) if self.quant == "none" else None
        return self.dtype if self.quant == "none" else np.dtype(np.float32)

    def layer(self, c: LlamaConfig) -> PagedLayer:
        """What every layer keeps."""
        return PagedLayer(self.heads.slots, self.heads.width, c.head_dim, c.head_dim, c.window)

    def store(self, inputs: int) -> Store:
        """What a matrix with `inputs` in-dimensions is kept as."""
        return untiled if self.native else linear_store(inputs, self.quant)


class Attention(nnx.Module):
    """Grouped-query attention; q, k and v are one matmul, laid out by group as [K, G query heads + k + v, H]."""

    def __init__(self, c: LlamaConfig, layout: Layout, make: Linears) -> None:
        groups = ((layout.heads.slots, "kv_heads"),)
        width, size = layout.heads.width, c.head_dim
        embed = ((c.hidden_size, "embed"),)
        self.norm = RMSNorm(c.hidden_size, c.epsilon, native=layout.native)
        every = (*groups, (width + 2, None), (size, None))
        self.qkv = make("attention.qkv", embed, every, bias=c.attention_bias, fine=True)
        self.out = make(
            "attention.out", (*groups, (width, None), (size, None)), embed, bias=c.attention_bias, fine=True
        )
        self.scale = size**-0.5
        self.layer = layout.layer(c)

    def __call__(
        self, x: jax.Array, table: tuple[jax.Array, jax.Array], mixer: Mixer[CacheT], cache: CacheT
    ) -> tuple[jax.Array, CacheT]:
        """x [T, D] -> x with what its tokens gather from each other, [T, D]."""
        qkv = self.qkv(x, self.norm, mixer.live)
        mixed, cache = self._mix(qkv, table, mixer, cache)
        return self.out.add(mixed, x, mixer.live), cache

    def _mix(
        self, qkv: jax.Array, table: tuple[jax.Array, jax.Array], mixer: Mixer[CacheT], cache: CacheT
    ) -> tuple[jax.Array, CacheT]:
        """qkv [T, K, G + 2, H] -> [T, K, G, H]."""
        if mixer.rotates:
            return mixer.attend_rotated(self.layer, qkv, table, cache, scale=self.scale)
        width = self.layer.group
        turned = rotate(qkv[:, :, : width + 1], table)
        q, k, v = turned[:, :, :width] * self.scale, turned[:, :, width], qkv[:, :, width + 1]
        return mixer.attend(self.layer, q, k, v, cache)


class MLP(nnx.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matmul, laid out by device as [devices, 2, F of a device]."""

    def __init__(self, c: LlamaConfig, layout: Layout, make: Linears) -> None:
        embed, devices, width = (c.hidden_size, "embed"), (layout.tensor_parallel, "mlp"), (layout.mlp, None)
        self.norm = RMSNorm(c.hidden_size, c.epsilon, native=layout.native)
        self.gate_up = make("mlp.gate_up", (embed,), (devices, (2, None), width), bias=c.mlp_bias)
        self.down = make("mlp.down", (devices, width), (embed,), bias=c.mlp_bias, fine=True)

    def __call__(self, x: jax.Array, live: Live = None) -> jax.Array:
        """x [T, D] -> x with what the MLP makes of it, [T, D]."""
        both = self.gate_up(x, self.norm, live)
        gated = both if both.ndim == 2 else jax.nn.silu(both[:, :, 0]) * both[:, :, 1]
        return self.down.add(gated, x, live)


class Block(nnx.Module):
    """One layer: attention and MLP, each on the normed residual stream and added to it."""

    def __init__(self, c: LlamaConfig, layout: Layout, make: Linears) -> None:
        self.attention = Attention(c, layout, make)
        self.mlp = MLP(c, layout, make)

    def __call__(
        self, x: jax.Array, table: tuple[jax.Array, jax.Array], mixer: Mixer[CacheT], cache: CacheT
    ) -> tuple[jax.Array, CacheT]:
        """x [T, D] -> [T, D]."""
        x, cache = self.attention(x, table, mixer, cache)
        return self.mlp(x, mixer.live), cache


class Llama(nnx.Module):
    """The whole network. Layers are a list, not a scan: XLA:CPU would copy every layer's weights in a scan."""

    def __init__(self, c: LlamaConfig, layout: Layout, make: Linears) -> None:
        self.embed = make.table("embed", layout.vocab, c.hidden_size)
        self.layers = nnx.List([Block(c, layout, make.within(f"layers.{n}.")) for n in range(c.layers)])
        self.norm = RMSNorm(c.hidden_size, c.epsilon, native=layout.native)
        self.head = None if c.tied else make.table("head", layout.vocab, c.hidden_size)
        self.frequencies = tuple(rope.frequencies(c.head_dim, c.theta, c.scaling).tolist())

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, mixer: Mixer[CacheT], cache: Sequence[CacheT]
    ) -> tuple[jax.Array, tuple[CacheT, ...]]:
        """tokens, positions [T] -> final normed hidden [T, D], one cache entry per layer."""
        table = rotary_table(positions, np.array(self.frequencies, np.float32))
        x = self.embed.rows(tokens, mixer.live)
        left = []
        for layer, entry in zip(self.layers, cache, strict=True):
            x, entry_left = layer(x, table, mixer, entry)
            left.append(entry_left)
        return self.norm(x, mixer.live), tuple(left)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:
        """hidden [R, D] -> float32 [R, V as laid out]."""
        return (self.embed if self.head is None else self.head).logits(hidden, live)


@frozen(eq=False)  # compared and hashed by identity: a model may be a static argument of jit
class LlamaModel:
    """`models.spec.Model` of this family."""

    architecture: str
    vocab_size: int
    max_positions: int
    widest: int
    layers: Sequence[PagedLayer]
    rules: Sequence[Rule | Ignore]
    _network: Functional[Llama]

    @property
    def param_specs(self) -> Mapping[str, Any]:
        return self._network.param_specs

    def forward(
        self,
        params: Params,
        tokens: jax.Array,
        positions: jax.Array,
        mixer: Mixer[CacheT],
        cache: Sequence[CacheT],
    ) -> tuple[jax.Array, tuple[CacheT, ...]]:
        """See `models.spec.Model`."""
        return self._network.bind(params)(tokens, positions, mixer, cache)

    def logits(self, params: Params, hidden: jax.Array, live: Live = None) -> jax.Array:
        """See `models.spec.Model`."""
        logits = self._network.bind(params).logits(hidden, live)
        return logits[:, : self.vocab_size]


def _rules(c: LlamaConfig, layout: Layout) -> tuple[Rule | Ignore, ...]:
    """The checkpoint table: Hugging Face names of the Llama family."""
    d = c.hidden_size
    table = untiled if layout.native else table_store(layout.quant)

    def vocab(path: str, name: str) -> Rule:
        return Rule(
            path, (layout.vocab, d), layout.wide, (Part(name, (c.vocab_size, d), (slice(c.vocab_size),)),), table
        )

    def norm(path: str, name: str) -> Rule:
        return Rule(path, (d,), np.dtype(np.float32), (Part(name, (d,)),), store_as("weight"))

    layer = "model.layers.{}."
    layers = [
        norm("layers.{}.attention.norm", layer + "input_layernorm.weight"),
        norm("layers.{}.mlp.norm", layer + "post_attention_layernorm.weight"),
        *_attention_rules(c, layout, layer + "self_attn."),
        *_mlp_rules(c, layout, layer + "mlp."),
    ]
    head = Ignore(r"lm_head\.weight") if c.tied else vocab("head", "lm_head.weight")
    outer = [vocab("embed", "model.embed_tokens.weight"), norm("norm", "model.norm.weight")]
    return (
        *unroll([*outer, *layers], c.layers),
        head,
        Ignore(r"(model\.layers\.\d+\.self_attn\.|model\.)rotary_emb\.inv_freq"),
    )


def _attention_rules(c: LlamaConfig, layout: Layout, at: str) -> list[Rule]:
    d, size, heads = c.hidden_size, c.head_dim, layout.heads
    slots, width = heads.slots, heads.width
    every = slice(None)
    places: list[tuple[str, int, Any, Any]] = [
        ("q_proj", c.query_heads, (every, slice(width)), heads.spread_queries),
        ("k_proj", c.kv_heads, (every, width), heads.spread_kv),
        ("v_proj", c.kv_heads, (every, width + 1), heads.spread_kv),
    ]

    def parts(kind: str, *inputs: int) -> tuple[Part, ...]:
        return tuple(
            Part(f"{at}{name}.{kind}", (count * size, *inputs), index, _split(count, size, spread))
            for name, count, index, spread in places
        )

    def gather_out(tensor: Array) -> Array:
        spread = heads.spread_queries(np.swapaxes(tensor, 0, 1).reshape(c.query_heads, size, d))
        return np.moveaxis(spread, -1, 0)

    path = "layers.{}.attention."
    name, shape = at + "o_proj.weight", (d, c.query_heads * size)
    # On one device the heads stand as in the checkpoint, so a block keeps its columns.
    out = Part(name, shape) if layout.tensor_parallel == 1 else Part(name, shape, (), gather_out)
    kernel = [
        Rule(path + "qkv", (slots, width + 2, size, d), layout.wide, parts("weight", d), layout.store(1)),
        Rule(path + "out", (d, slots, width, size), layout.wide, (out,), layout.store(3), inputs=3),
    ]
    bias = [
        Rule(path + "qkv", (slots, width + 2, size), layout.dtype, parts("bias"), store_as("bias")),
        Rule(path + "out", (d,), layout.dtype, (Part(at + "o_proj.bias", (d,)),), store_as("bias")),
    ]
    return kernel + bias * c.attention_bias


def _split(count: int, size: int, spread: Any) -> Any:
    return lambda tensor: spread(tensor.reshape(count, size, *tensor.shape[1:]))


def _mlp_rules(c: LlamaConfig, layout: Layout, at: str) -> list[Rule]:
    d, f = c.hidden_size, c.intermediate_size
    devices, width = layout.tensor_parallel, layout.mlp

    def split(tensor: Array) -> Array:
        """[F, ...] -> [devices, F of a device, ...], zeros at the end."""
        padded = np.zeros((devices * width, *tensor.shape[1:]), tensor.dtype)
        padded[:f] = tensor
        return padded.reshape(devices, width, *tensor.shape[1:])

    def parts(kind: str, *inputs: int) -> tuple[Part, ...]:
        names = enumerate(("gate_proj", "up_proj"))
        return tuple(Part(f"{at}{name}.{kind}", (f, *inputs), (slice(None), place), split) for place, name in names)

    path = "layers.{}.mlp."
    name = at + "down_proj.weight"
    one = Part(name, (d, f))
    down = one if devices == 1 else Part(name, (d, f), (), lambda tensor: np.moveaxis(split(tensor.T), -1, 0))
    kernel = [
        Rule(path + "gate_up", (devices, 2, width, d), layout.wide, parts("weight", d), layout.store(1)),
        Rule(path + "down", (d, devices, width), layout.wide, (down,), layout.store(2), inputs=2),
    ]
    bias = [
        Rule(path + "gate_up", (devices, 2, width), layout.dtype, parts("bias"), store_as("bias")),
        Rule(path + "down", (d,), layout.dtype, (Part(at + "down_proj.bias", (d,)),), store_as("bias")),
    ]
    return kernel + bias * c.mlp_bias


def build(
    config: Mapping[str, Any],
    *,
    tensor_parallel: int = 1,
    quant: str = "none",
    dtype: Any = None,
    native: bool = False,
    storage: Mapping[str, Storage] | None = None,
) -> LlamaModel:
    """The model of `config`; see `models.spec.Family`. `dtype` None is float32 on a CPU and bfloat16 elsewhere."""
    assert tensor_parallel >= 1, f"tensor_parallel {tensor_parallel}"
    check(quant, native=native)
    c = LlamaConfig.read(config)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    layout = Layout.plan(c, tensor_parallel, quant, np.dtype(dtype), native)
    rules = _rules(c, layout)
    tiles: dict[str, Tiles] = {}
    if native:
        assert tensor_parallel == 1, "the native kernels see one device"
        assert layout.dtype == np.float32, f"the native kernels compute in float32, not {layout.dtype}"
        if c.mlp_bias:
            raise ModelError("native kernels", ["mlp_bias has no kernel; without them it is served"])
        rules, tiles = tile(rules, storage, quant, gated=("gate_up",), tables=("embed", "head"))
    make = Linears(quant, layout.dtype, tensor_parallel, tiles)
    return LlamaModel(
        architecture=c.architecture,
        vocab_size=c.vocab_size,
        max_positions=c.max_positions,
        widest=max(c.hidden_size, c.intermediate_size),
        layers=(layout.layer(c),) * c.layers,
        rules=rules,
        network=functional(lambda: Llama(c, layout, make)),
    )
