"""What a config.json says of experts that are chosen by sigmoids, in the keys that its families share; must not know jax.

The keys are DeepSeek V3's (https://arxiv.org/abs/2412.19437, section 2.1.2), which GLM-4.5 and later have as well.
"""

from models.config import Keys
from models.dense.record import Experts


def read_sigmoid_experts(
    keys: Keys, *, count: int, active: int, width: int, scale: float, groups: int = 1, kept_groups: int = 1
) -> Experts:
    """The experts of a layer; the numbers are the family's own, where the config says nothing."""
    width = keys.size("moe_intermediate_size", width)
    return Experts(
        count=keys.size("n_routed_experts", count),
        active=keys.size("num_experts_per_tok", active),
        width=width,
        scoring="sigmoid",
        renormalised=keys.flag("norm_topk_prob", default=True),
        scale=keys.number("routed_scaling_factor", scale),
        correction=True,
        groups=keys.size("n_group", groups),
        kept_groups=keys.size("topk_group", kept_groups),
        shared=width * keys.size("n_shared_experts", 1),
    )
