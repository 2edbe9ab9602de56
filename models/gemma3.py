"""The Gemma 3 family, its text: 270M and 1B, that of 4B, 12B and 27B, and EmbeddingGemma; must not know files, pages or jax.

Five layers that see a window, then one that sees everything and turns by another base. Unlike a Llama it has norms before
and behind attention and MLP, which multiply by 1 + w, norms of each head's query and key, GELU in the MLP, and embeddings
times the root of their width; the head is the embeddings. https://arxiv.org/abs/2503.19786. EmbeddingGemma's tokens see both
ways. https://arxiv.org/abs/2509.20354.
"""

from typing import Any

from attrs import evolve

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, QK_NORMS, SANDWICH_NORMS, USUAL, gguf_tensors
from models.dense.record import ACTIVATIONS, FULL, SLIDING, Dense, Layer
from models.gguf import GgufTable
from models.pooling import MODULES, has_pooling
from models.rope import Rotary, read_rotary
from models.spec import Config

NAME, EMBEDS = "Gemma3ForCausalLM", "Gemma3TextModel"
_BASES = {SLIDING: ("rope_local_base_freq", 10000.0), FULL: ("rope_theta", 1000000.0)}
"""Where older configs have the base, and what it is where they do not say."""
_LAYERS_OF_27B = 62


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit.

    The text part of a larger model leaves out what 4B has, so that is what is missing elsewhere, too.
    """
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size", 2304), keys.size("num_attention_heads", 8)
    kv_heads, head_dim = keys.size("num_key_value_heads", 4), keys.size("head_dim", 256)
    count, window = keys.size("num_hidden_layers", 26, most=MOST_LAYERS), keys.size("sliding_window", 4096)
    bias = keys.flag("attention_bias")
    if keys.flag("use_bidirectional_attention"):
        window = window // 2 + 1  # of which half lies on either side, the token itself included
        if not has_pooling(config):
            keys.refuse("use_bidirectional_attention is true, which only models that embed have, saved with a pooling")
    if keys.get("attn_logit_softcapping") is not None:
        keys.refuse("attn_logit_softcapping must be null: Gemma 3 has norms in its place")
    rotary = {kind: _rotary(keys, kind, head_dim) for kind in _BASES}
    every = keys.size("sliding_window_pattern", 6)
    usual = [FULL if n % every == 0 else SLIDING for n in range(1, count + 1)]
    kinds = keys.each("layer_types", (SLIDING, FULL), usual)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 262208),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 9216),
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(Layer(rotary[kind], window if kind == SLIDING else None) for kind in kinds),
        tied=keys.flag("tie_word_embeddings", default=True),
        activation=keys.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        qkv_bias=bias,
        out_bias=bias,
        post_norms=True,
        norm_offset=1.0,
        qk_norm=True,
        scale=keys.number("query_pre_attn_scalar", 256.0) ** -0.5,
        embedding_scale=hidden**0.5,
        logit_cap=keys.optional_number("final_logit_softcapping"),
    )
    return checked(keys, found)


def _rotary(keys: Keys, kind: str, head_dim: int) -> Rotary:
    """Of one kind of layers. In older configs each base is a key of its own, and the scaling is the full layers'."""
    name, theta = _BASES[kind]
    older = {"rope_theta": keys.number(name, theta), "partial_rotary_factor": keys.get("partial_rotary_factor")}
    scaling = keys.get("rope_scaling") if kind == FULL else None
    own = {**older, "rope_scaling": scaling, "rope_parameters": keys.section("rope_parameters").get(kind)}
    said = Keys(own, keys.subject)
    said.misfits = keys.misfits  # one list, so that what is wrong already is known there
    return read_rotary(said, head_dim, whole=True)


NAMES = {**USUAL, **QK_NORMS, **SANDWICH_NORMS}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF has no key for the scale of queries, which 27B alone takes from its width; a file without a window has none."""
    spread = config["hidden_size"] // config["num_attention_heads"]
    scalar = spread if config["num_hidden_layers"] == _LAYERS_OF_27B else config["head_dim"]
    windows = {} if "sliding_window" in config else {"sliding_window_pattern": 1}
    return config | windows | {"query_pre_attn_scalar": scalar, "architectures": [NAME]}


GGUF = GgufTable(
    architecture="gemma3",
    tensors=gguf_tensors(NAMES),
    required={
        **GGUF_KEYS,
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
    },
    optional={
        "attention.sliding_window": "sliding_window",
        "attention.sliding_window_pattern": "sliding_window_pattern",
        "rope.freq_base": "rope_theta",
        "rope.freq_base_swa": "rope_local_base_freq",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    plus_one=tuple(stem for what, stem in NAMES.items() if what.endswith("norm")),
    finish=_finish,
)

_MAPS = ("2_Dense", "3_Dense")
"""EmbeddingGemma's maps behind the mean, by their folders, where a file has them: dense_2 and dense_3 there."""


def _finish_embedding(config: dict[str, Any]) -> dict[str, Any]:
    """The file's window is the whole one, of which half lies on either side."""
    first, *others = config[MODULES]
    maps = [_map(config, name) for name in _MAPS if f"{name} inputs" in config]
    modules = [first, *others[:1], *maps, *others[1:]]
    return _finish(config) | {"use_bidirectional_attention": True, "architectures": [EMBEDS], MODULES: modules}


def _map(config: dict[str, Any], name: str) -> dict[str, Any]:
    sizes = {"in_features": config[f"{name} inputs"], "out_features": config.get(f"{name} outputs")}
    return {"type": "Dense", "path": name, "config": {**sizes, "bias": False, "activation_function": "Identity"}}


GGUF_EMBEDDING = evolve(
    GGUF,
    architecture="gemma-embedding",
    tensors=dict(GGUF.tensors) | {"dense_2": "2_Dense.linear", "dense_3": "3_Dense.linear"},
    optional=dict(GGUF.optional)
    | {f"dense_{name[0]}_feat_{end}": f"{name} {end}puts" for name in _MAPS for end in ("in", "out")},
    pooling=1,
    finish=_finish_embedding,
)

FAMILY = evolve(
    dense_family(architectures=(NAME, EMBEDS), model_types=("gemma3_text",), read=read, names=NAMES),
    gguf=(GGUF, GGUF_EMBEDDING),
)
