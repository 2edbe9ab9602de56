"""The GLM-4.7-Flash family; must not know files, pages or jax.

A DeepSeek V3 of other sizes, whose experts are one group. In GGUF files it is DeepSeek's. https://arxiv.org/abs/2508.06471.
"""

from models.config import MOST_LAYERS, Keys
from models.deepseek_v3 import NAMES, drafting, read_deepseek
from models.dense.expert_config import read_sigmoid_experts
from models.dense.family import dense_family
from models.dense.record import Dense
from models.spec import Config

NAME = "Glm4MoeLiteForCausalLM"
_DENSE, _SPARSE = "dense", "sparse"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys({"max_position_embeddings": 202752, "rms_norm_eps": 1e-5, **config}, NAME)
    experts = read_sigmoid_experts(keys, count=64, active=4, width=1536, scale=1.8)
    count = keys.size("num_hidden_layers", 47, most=MOST_LAYERS)
    first = min(keys.size("first_k_dense_replace", 1, least=0), count)
    kinds = keys.each("mlp_layer_types", (_DENSE, _SPARSE), (_DENSE,) * first + (_SPARSE,) * (count - first))
    dense = kinds.index(_SPARSE) if _SPARSE in kinds else count
    if _DENSE in kinds[dense:]:
        keys.refuse("mlp_layer_types must have the dense layers first")
    return read_deepseek(keys, experts, dense=dense, interleaved=keys.flag("rope_interleave", default=True))


FAMILY = dense_family(architectures=(NAME,), model_types=("glm4_moe_lite",), read=read, names=NAMES, ignored=drafting)
