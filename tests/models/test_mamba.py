"""What configs of families that mix by Mamba 2 may say, and what is told of those that are wrong."""

from typing import Any

import pytest

from models.errors import ModelError
from models.registry import read
from tests.models.test_references import GRANITE_HYBRID, NEMOTRON_H

GRANITE = GRANITE_HYBRID["granite hybrid, experts"]
NEMOTRON = NEMOTRON_H["nemotron_h"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GRANITE | {"mamba_n_groups": 3}, "8 heads of Mamba do not divide among 3 groups"),
        (GRANITE | {"mamba_d_head": 11}, "8 mamba_n_heads of 11 are not 80, mamba_expand times hidden_size"),
        (
            GRANITE | {"layer_types": ["mamba", "delta", "mamba", "mamba"]},
            "layer_types is .*, must be 4 times 'mamba' or",
        ),
        (GRANITE | {"time_step_limit": [0.001, 0.1]}, "time_step_limit is .*, must be from 0 to infinity"),
        (GRANITE | {"time_step_limit": 5}, "time_step_limit is 5, must be from 0 to infinity"),
        (GRANITE | {"num_experts_per_tok": 7}, "7 of 6 experts cannot be active"),
        (
            GRANITE | {"mamba_n_heads": 2**24, "mamba_d_head": 1, "hidden_size": 2**23, "num_attention_heads": 2**21},
            "16777216 heads are more than the 65536",
        ),
        (NEMOTRON | {"hybrid_override_pattern": "M-X"}, "must name every layer"),
        (NEMOTRON | {"hybrid_override_pattern": ""}, "must name every layer"),
        (NEMOTRON | {"hybrid_override_pattern": None, "layers_block_type": [[]]}, "must name every layer"),
        (NEMOTRON | {"attention_bias": True}, "attention_bias must be false"),
        (NEMOTRON | {"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu', must be 'relu2'"),
        (NEMOTRON | {"hybrid_override_pattern": "ME"}, "mlp_bias must be false where there are experts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_config_is_told(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read(config)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (GRANITE | {"time_step_limit": [0.0, float("inf")]}, GRANITE),
        (GRANITE | {"time_step_limit": [0.0, {"__float__": "Infinity"}]}, GRANITE),
        (GRANITE | {"layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"]}, GRANITE),
        (
            NEMOTRON | {"layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp", "mamba"]},
            NEMOTRON,
        ),
    ],
    ids=["limit", "limit as an object", "granite", "nemotron"],
)
def test_older_and_newer_files_say_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert read(one) == read(other)


def test_a_layer_of_one_thing_keeps_what_it_mixes() -> None:
    """Of six layers two have an MLP alone, and keep nothing of a text."""
    found = read(NEMOTRON)

    assert len(found.layers) == 4
