"""The OLMo family: OLMo 2 of 1B to 32B, and OLMo 3, whose layers see windows but for every fourth; no files, pages or jax.

Norms stand behind attention and MLP alone, and one of all heads' queries together, and one of all keys. In OLMo 3 only layers
that see everything have their rotary scaled. https://arxiv.org/abs/2501.00656, https://arxiv.org/abs/2512.13961.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys, architectures
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, LAYER, QK_NORMS, USUAL, gguf_tensors, without
from models.dense.record import FULL, SILU, SLIDING, Dense, Layer
from models.gguf import GgufTable, finish_as
from models.rope import Rotary, read_rotary
from models.spec import Config

OLMO2, OLMO3 = "Olmo2ForCausalLM", "Olmo3ForCausalLM"
_THETA = 500000.0


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    usual = OLMO3 if config.get("model_type") == "olmo3" else OLMO2
    name = next((name for name in architectures(config) if name in (OLMO2, OLMO3)), usual)
    keys = Keys(config, name)
    hidden, heads = keys.size("hidden_size", 4096), keys.size("num_attention_heads", 32)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    bias, count = keys.flag("attention_bias"), keys.size("num_hidden_layers", 32, most=MOST_LAYERS)
    found = Dense(
        architecture=name,
        vocab_size=keys.size("vocab_size", 50304),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 11008),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 2048),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=_windowed(keys, head_dim, count)
        if name == OLMO3
        else (Layer(read_rotary(keys, head_dim, whole=True)),) * count,
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        pre_norms=False,
        post_norms=True,
        qk_norm=True,
        heads_together=True,
    )
    return checked(keys, found)


def _windowed(keys: Keys, head_dim: int, count: int) -> tuple[Layer, ...]:
    window, rotary = (
        keys.size("sliding_window", 4096),
        {kind: _rotary(keys, kind, head_dim) for kind in (SLIDING, FULL)},
    )
    kinds = keys.each("layer_types", (SLIDING, FULL), [FULL if n % 4 == 0 else SLIDING for n in range(1, count + 1)])
    return tuple(Layer(rotary[kind], window if kind == SLIDING else None) for kind in kinds)


def _rotary(keys: Keys, kind: str, head_dim: int) -> Rotary:
    """Of one kind of layers. In older configs base and scaling are the full layers' alone, as transformers reads them."""
    own = {
        "rope_theta": keys.number("rope_theta", _THETA) if kind == FULL else _THETA,
        "rope_scaling": keys.get("rope_scaling") if kind == FULL else None,
        "rope_parameters": keys.section("rope_parameters").get(kind),
    }
    said = Keys(own, keys.subject)
    said.misfits = keys.misfits  # one list, so that what is wrong already is known there
    return read_rotary(said, head_dim, whole=True)


NAMES = {
    **without(USUAL, "attention.norm", "mlp.norm"),
    **QK_NORMS,
    "attention.post_norm": LAYER + "post_attention_layernorm",
    "mlp.post_norm": LAYER + "post_feedforward_layernorm",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF calls both alike; windows tell them apart. Its base is that of all layers, its scaling that of the full ones."""
    pattern = config.pop("pattern", None)
    if "sliding_window" not in config:
        return finish_as(OLMO2)(config)
    base = {"rope_theta": config.pop("rope_theta", _THETA)}
    rotary = {SLIDING: base, FULL: base | (config.pop("rope_scaling", None) or {})}
    kinds = {"layer_types": [SLIDING if slides else FULL for slides in pattern]} if isinstance(pattern, list) else {}
    return finish_as(OLMO3)(config | kinds | {"rope_parameters": rotary})


GGUF = GgufTable(
    architecture="olmo2",
    tensors=gguf_tensors(NAMES),
    required=GGUF_KEYS,
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.sliding_window": "sliding_window",
        "rope.freq_base": "rope_theta",
    },
    other={"attention.sliding_window_pattern": "pattern"},
    flags={"attention_bias": "blk.0.attn_q.bias"},
    finish=_finish,
)

FAMILY = dense_family(architectures=(OLMO2, OLMO3), model_types=("olmo2", "olmo3"), read=read, names=NAMES, gguf=GGUF)
