"""The GLM-4.7-Flash family; must not know files, pages or jax.

A DeepSeek V3 of other sizes, whose experts are one group. In GGUF files it is DeepSeek's. https://arxiv.org/abs/2508.06471.
"""

from models.config import MOST_LAYERS, Keys
from models.deepseek_v3 import NAMES, drafting, read_deepseek
from models.dense.family import dense_family
from models.dense.record import Dense, Experts
from models.spec import Config

NAME = "Glm4MoeLiteForCausalLM"
_DENSE, _SPARSE = "dense", "sparse"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys({"max_position_embeddings": 202752, "rms_norm_eps": 1e-5, **config}, NAME)
    experts = Experts(
        count=keys.size("n_routed_experts", 64),
        active=keys.size("num_experts_per_tok", 4),
        width=keys.size("moe_intermediate_size", 1536),
        scoring="sigmoid",
        renormalised=keys.flag("norm_topk_prob", default=True),
        scale=keys.number("routed_scaling_factor", 1.8),
        correction=True,
        groups=keys.size("n_group", 1),
        kept_groups=keys.size("topk_group", 1),
        shared=keys.size("moe_intermediate_size", 1536) * keys.size("n_shared_experts", 1),
    )
    count = keys.size("num_hidden_layers", 47, most=MOST_LAYERS)
    first = min(keys.size("first_k_dense_replace", 1, least=0), count)
    kinds = keys.each("mlp_layer_types", (_DENSE, _SPARSE), (_DENSE,) * first + (_SPARSE,) * (count - first))
    dense = kinds.index(_SPARSE) if _SPARSE in kinds else count
    if _DENSE in kinds[dense:]:
        keys.refuse("mlp_layer_types must have the dense layers first")
    return read_deepseek(keys, experts, dense=dense, interleaved=keys.flag("rope_interleave", default=True))


FAMILY = dense_family(architectures=(NAME,), model_types=("glm4_moe_lite",), read=read, names=NAMES, ignored=drafting)
