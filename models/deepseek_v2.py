"""The DeepSeek V2 family: V2, V2-Lite, V2.5, their Coder and Chat; must not know files, pages or jax.

As V3, but experts are chosen by softmax, and of several groups those count whose best expert has the highest score. V2-Lite
makes queries of the tokens themselves. https://arxiv.org/abs/2405.04434.
"""

from models.config import Keys
from models.deepseek_v3 import NAMES as NAMES_OF_V3
from models.deepseek_v3 import SECOND, drafting, read_deepseek
from models.dense.family import dense_family
from models.dense.names import without
from models.dense.record import Dense, Experts
from models.spec import Config


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, SECOND)
    grouped = keys.choice("topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    experts = Experts(
        count=keys.size("n_routed_experts", 64),
        active=keys.size("num_experts_per_tok"),
        width=keys.size("moe_intermediate_size", 1407),
        renormalised=False,
        scale=keys.number("routed_scaling_factor", 1.0),
        groups=keys.size("n_group") if grouped else 1,
        kept_groups=keys.size("topk_group") if grouped else 1,
        group_best=1,
        shared=keys.size("moe_intermediate_size", 1407) * keys.size("n_shared_experts", 2),
    )
    if keys.flag("norm_topk_prob"):
        keys.refuse("norm_topk_prob must be false: the shares of experts are not divided by their sum")
    return read_deepseek(keys, experts, dense=keys.size("first_k_dense_replace", 0, least=0))


NAMES = without(NAMES_OF_V3, "experts.correction")

FAMILY = dense_family(architectures=(SECOND,), model_types=("deepseek_v2",), read=read, names=NAMES, ignored=drafting)
