"""The LFM2 family, dense: LFM2 and 2.5; must not know files, pages or jax.

350M to 2.6B. A Llama with norms of heads, most of whose layers mix by a gated short convolution in attention's place.
https://arxiv.org/abs/2511.23404.
"""

from collections.abc import Sequence
from typing import Any

from models.config import MOST, MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import CONVOLUTION as CONVOLUTION_NAMES
from models.dense.names import GGUF_KEYS, LAYER, USUAL, gguf_tensors
from models.dense.record import CONVOLUTION, FULL, Dense, Layer, ShortConvolution
from models.gguf import Changed, GgufTable
from models.rope import read_rotary
from models.spec import Config

NAME = "Lfm2ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    return checked(keys, read_as(keys, _intermediate(keys)))


def read_as(keys: Keys, width: int) -> Dense:
    """The same with an MLP of this width, of which `keys` has still to tell the misfits."""
    hidden, heads = keys.size("hidden_size"), keys.size("num_attention_heads")
    head_dim = keys.optional_size("head_dim") or hidden // heads
    tied = "tie_word_embeddings" if keys.get("tie_embedding") is None else "tie_embedding"
    return Dense(
        architecture=keys.subject,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=width,
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 128000),
        epsilon=keys.number("norm_eps", 1e-5),
        stack=_stack(keys, head_dim),
        tied=keys.flag(tied, default=True),
        qk_norm=True,
    )


def _intermediate(keys: Keys) -> int:
    """Two thirds of what the config says, times a factor, rounded up, where it is not to be taken as it is."""
    said = keys.size("intermediate_size" if keys.get("block_ff_dim") is None else "block_ff_dim", 12288)
    if not keys.flag("block_auto_adjust_ff_dim", default=True):
        return said
    size, multiple = int(2 * said / 3), keys.size("block_multiple_of", 256)
    size = int(keys.number("block_ffn_dim_multiplier", 1.0) * size)
    rounded = max(-(-size // multiple) * multiple, 1)
    if rounded > MOST:
        keys.refuse(f"block_ffn_dim_multiplier makes an MLP of {rounded:.2g}, at most {MOST} are served")
    return rounded


def _stack(keys: Keys, head_dim: int) -> tuple[Layer, ...]:
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    kinds = keys.each("layer_types", (CONVOLUTION, FULL), _usual(keys.get("full_attn_idxs"), count))
    attention = Layer(read_rotary(keys, head_dim, theta=1000000.0, whole=True))
    bias = keys.flag("conv_bias")
    convolution = Layer(None, recurrence=ShortConvolution(keys.size("conv_L_cache", 3, least=2), bias))
    return tuple(attention if kind == FULL else convolution for kind in kinds)


def _usual(attending: Any, count: int) -> Sequence[str]:
    """Attention in the layers of these numbers, or in all."""
    if not isinstance(attending, list | tuple):
        return [FULL] * count
    return [FULL if n in attending else CONVOLUTION for n in range(count)]


_FEED = LAYER + "feed_forward."
NAMES = {
    **USUAL,
    **CONVOLUTION_NAMES,
    "attention.norm": LAYER + "operator_norm",
    "attention.out": LAYER + "self_attn.out_proj",
    "attention.q_norm": LAYER + "self_attn.q_layernorm",
    "attention.k_norm": LAYER + "self_attn.k_layernorm",
    "mlp.norm": LAYER + "ffn_norm",
    "mlp.gate": _FEED + "w1",
    "mlp.up": _FEED + "w3",
    "mlp.down": _FEED + "w2",
    "norm": "model.embedding_norm",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    return finish_convolving(NAME, config)


def finish_convolving(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The file counts the kv heads of each layer, none where it convolves, and has the width of the MLP as it is."""
    heads = config.pop("kv_heads_by_layer", None)
    if isinstance(heads, list) and all(isinstance(count, int) for count in heads):
        config["layer_types"] = [FULL if count else CONVOLUTION for count in heads]
        heads = max(heads, default=0)
    attended = {"num_key_value_heads": heads or config["num_attention_heads"]}
    settled = {"block_auto_adjust_ff_dim": False, "norm_eps": config.pop("rms_norm_eps"), "architectures": [name]}
    return {**config, **attended, **settled}


GGUF = GgufTable(
    architecture="lfm2",
    tensors=gguf_tensors(NAMES) | {"token_embd_norm": NAMES["norm"]},
    required={**GGUF_KEYS, "shortconv.l_cache": "conv_L_cache"},
    optional={"rope.freq_base": "rope_theta"},
    other={"attention.head_count_kv": "kv_heads_by_layer"},
    changed={NAMES["convolution.taps"] + ".weight": Changed(one=1)},
    refused={"attention.sliding_window": "windows are not served"},
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME,),
    model_types=("lfm2",),
    read=read,
    names=NAMES,
    gguf=GGUF,
)
