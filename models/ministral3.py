"""The Ministral 3 family: 3B, 8B and 14B, the text part of the larger ones that see; must not know files, pages or jax.

A Mistral whose frequencies are scaled by YaRN, and whose queries are sharpened the further they are in the text.
https://arxiv.org/abs/2601.08584, https://arxiv.org/abs/2501.19399 (sharpening by position).
"""

from collections.abc import Mapping
from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.family import checked, dense_family
from models.dense.names import GGUF_KEYS, USUAL, gguf_tensors
from models.dense.record import SILU, Dense, Layer, Sharpening
from models.gguf import GgufTable
from models.rope import read_rotary
from models.spec import Config

NAME = "Ministral3ForCausalLM"
SCALING: Mapping[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""Where a config has no rope_parameters."""


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(
        {"rope_parameters": SCALING, **{key: value for key, value in config.items() if value is not None}}, NAME
    )
    heads, head_dim = keys.size("num_attention_heads", 32), keys.size("head_dim", 128)
    layer = Layer(
        read_rotary(keys, head_dim, whole=True), keys.optional_size("sliding_window"), sharpening=_sharpening(keys)
    )
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 131072),
        hidden_size=keys.size("hidden_size", 4096),
        intermediate_size=keys.size("intermediate_size", 14336),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", 8),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 262144),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=(layer,) * keys.size("num_hidden_layers", 34, most=MOST_LAYERS),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
    )
    return checked(keys, found)


def _sharpening(keys: Keys) -> Sharpening | None:
    said = Keys(keys.section("rope_parameters"), keys.subject)
    beta = said.optional_number("llama_4_scaling_beta")
    original = None if beta is None else said.size("original_max_position_embeddings")
    keys.misfits += said.misfits
    return None if beta is None or original is None else Sharpening(beta, original)


NAMES = USUAL


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """The file has in several places what config.json has in one."""
    said = dict(config)
    beta, log = said.pop("llama_4_scaling_beta", None), said.pop("mscale", None)
    scaling = {**(said.pop("rope_scaling") or {}), "llama_4_scaling_beta": beta, "mscale": log, "mscale_all_dim": log}
    return said | {"rope_parameters": {"rope_theta": said.get("rope_theta"), **scaling}, "architectures": [NAME]}


GGUF = GgufTable(
    architecture="mistral3",
    tensors=gguf_tensors(NAMES),
    required={**GGUF_KEYS, "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim"},
    optional={
        "attention.temperature_scale": "llama_4_scaling_beta",
        "rope.freq_base": "rope_theta",
        "rope.scaling.yarn_log_multiplier": "mscale",
    },
    neighbours={NAMES["attention.q"]: "num_attention_heads", NAMES["attention.k"]: "num_key_value_heads"},
    refused={"expert_count": "mixtures of experts are not supported"},
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("ministral3",), read=read, names=NAMES, gguf=GGUF)
