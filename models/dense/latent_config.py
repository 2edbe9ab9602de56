"""What a config.json says of multi-head latent attention, in the keys that its families share; must not know jax.

The keys are DeepSeek's: kv_lora_rank, q_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim.
"""

from models.config import Keys
from models.dense.record import Latent, Layer
from models.rope import latent_sharpening, read_rotary


def read_latent(keys: Keys, *, interleaved: bool = True, split: bool = False) -> Layer:
    """The attention of every layer. `interleaved`: the pairs that turn are neighbours in the checkpoint."""
    turned = keys.size("qk_rope_head_dim")
    kind = Latent(
        rank=keys.size("kv_lora_rank"),
        still=keys.size("qk_nope_head_dim"),
        turned=turned,
        value=keys.size("v_head_dim"),
        query_rank=keys.optional_size("q_lora_rank"),
        split=split,
    )
    return Layer(read_rotary(keys, turned, whole=True, interleaved=interleaved), latent=kind)


def latent_scale(keys: Keys, kind: Latent) -> float:
    """What queries are multiplied by."""
    scaling = keys.section("rope_parameters") or keys.section("rope_scaling")
    sharper = 1.0 if keys.misfits else latent_sharpening(scaling)
    return float((kind.still + kind.turned) ** -0.5 * sharper)
