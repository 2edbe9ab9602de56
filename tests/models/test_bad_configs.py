"""Numbers of a config.json that are none, or absurd: each is refused by its name, in every family."""

from typing import Any

import pytest

from models.errors import ModelError
from models.registry import read
from tests.models.test_references import FAMILIES

FIRST = {family: next(iter(cases.values())) for family, cases in FAMILIES.items()}
UNUSED = {
    "qwen2": {"sliding_window", "max_window_layers"},
    "lfm2": {"rms_norm_eps"},
    "lfm2_moe": {"rms_norm_eps"},
    "nemotron_h": {"time_step_min"},
}
"""What a family does not ask for, or another key switches off."""
WRONG = [-1, 10**40, "x", [], {"a": 1}, float("nan")]


@pytest.mark.parametrize("family", FIRST)
def test_a_number_that_is_none_is_refused_by_name(family: str) -> None:
    config = FIRST[family]
    for key in config.keys() - UNUSED.get(family, set()) - {"pad_token_id"}:
        for wrong in WRONG if type(config[key]) in (int, float) else []:
            with pytest.raises(ModelError, match=rf"\b{key} is "):
                read(config | {key: wrong})


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("qwen3", {"num_attention_heads": 131072, "num_key_value_heads": 2}, "131072 heads are more than the 65536"),
        ("nemotron_h", {"mamba_num_heads": 2**31 - 2, "n_groups": 1}, "2147483646 heads are more than the 65536"),
        ("qwen3_5", {"linear_num_value_heads": 3 * 2**20}, "3145728 heads are more than the 65536"),
        ("qwen3_moe", {"num_experts": 2**20}, "1048576 experts are more than the 4096"),
        (
            "granite",
            {"residual_multiplier": 1e308},
            r"residual_multiplier is 1e\+308, must be a positive number up to 1.7e\+38",
        ),
        ("lfm2", {"block_ffn_dim_multiplier": 1e38}, "block_ffn_dim_multiplier makes an MLP of"),
        (
            "granite_hybrid",
            {"position_embedding_type": "alibi"},
            "position_embedding_type is 'alibi', must be 'rope' or 'nope'",
        ),
        ("llama4", {"attn_temperature_tuning": -1}, "attn_temperature_tuning is -1"),
        ("llama4", {"attention_chunk_size": None, "layer_types": ["chunked_attention"] * 4}, "says no chunk"),
        ("hunyuan_v1_moe", {"moe_topk": [3, 2]}, r"moe_topk is \[3, 2\]"),
        (
            "hunyuan_v1_moe",
            {"moe_intermediate_size": [18, 18]},
            "moe_intermediate_size is 18, must be intermediate_size",
        ),
        (
            "hunyuan_v1_dense",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope scaling 'dynamic' is not supported without an alpha",
        ),
    ],
)
def test_what_is_absurd_is_refused_before_anything_is_laid_out(family: str, change: dict[str, Any], words: str) -> None:
    """Heads and experts are laid out one by one, and squares of numbers have to be numbers."""
    with pytest.raises(ModelError, match=words):
        read(FIRST[family] | change)
