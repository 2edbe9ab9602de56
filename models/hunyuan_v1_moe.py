"""The Hunyuan family with experts: Hunyuan-A13B, of 80B; must not know files, pages or jax.

A Hunyuan each of whose layers has 64 experts, of which a token goes through 8, and one MLP that all tokens share.
https://github.com/Tencent-Hunyuan/Hunyuan-A13B.
"""

from collections.abc import Sequence
from typing import Any

from models.config import Keys
from models.dense.family import checked, dense_family
from models.dense.names import EXPERTS, GGUF_KEYS, LAYER, USUAL, gguf_tensors, without
from models.dense.record import Dense, Experts
from models.gguf import GgufTable, finish_as
from models.hunyuan_v1_dense import HEAD_NORMS, read_hunyuan
from models.spec import Config

NAME = "HunYuanMoEV1ForCausalLM"
_BY_LAYER = ("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size")
"""One number, or one for each layer."""


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys({**config, **{key: _same(config.get(key)) for key in _BY_LAYER}}, NAME)
    width = keys.size("intermediate_size", 11008)
    own = keys.size("moe_intermediate_size", width)
    if own != width:
        keys.refuse(f"moe_intermediate_size is {own}, must be intermediate_size, which is {width}")
    experts = Experts(
        count=keys.size("num_experts", keys.size("num_local_experts", 1)),
        active=keys.size("moe_topk", keys.size("num_experts_per_tok", 1)),
        width=width,
        shared=width * keys.size("num_shared_expert", 1),
    )
    return checked(keys, read_hunyuan(keys, experts))


def _same(said: Any) -> Any:
    """The number of all layers, where each has its own and it is the same one; else as it stands there."""
    every = isinstance(said, Sequence) and not isinstance(said, str) and said and all(one == said[0] for one in said)
    return said[0] if every else said


_MLP = LAYER + "mlp."
NAMES = {
    **without(USUAL, "mlp.gate", "mlp.up", "mlp.down"),
    **HEAD_NORMS,
    **EXPERTS,
    "experts.router": _MLP + "gate.wg",
    "shared.gate": _MLP + "shared_mlp.gate_proj",
    "shared.up": _MLP + "shared_mlp.up_proj",
    "shared.down": _MLP + "shared_mlp.down_proj",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """The shared MLP may be wider than an expert; the config says by how many times."""
    said = dict(config)
    shared, width = said.pop("shared", None), said["intermediate_size"]
    return finish_as(NAME)(said if shared is None or shared % width else {**said, "num_shared_expert": shared // width})


GGUF = GgufTable(
    architecture="hunyuan-moe",
    tensors=gguf_tensors(NAMES),
    required={**GGUF_KEYS, "expert_count": "num_experts", "expert_used_count": "moe_topk"},
    optional={
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "shared",
        "rope.freq_base": "rope_theta",
    },
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("hunyuan_v1_moe",), read=read, names=NAMES, gguf=GGUF)
