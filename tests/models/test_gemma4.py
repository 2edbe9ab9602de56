"""What Gemma 4's family reads of a config, in both forms that there are, and what it refuses by name."""

from typing import Any

import pytest

from models.dense.record import Heads
from models.errors import ModelError
from models.registry import read
from models.spec import PagedLayer

SMALL: dict[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size": 67,
}
LARGE = SMALL | {
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
}


def test_full_layers_have_heads_of_their_own_in_both_forms() -> None:
    """Released configs say it once for all, transformers of each layer by its number."""
    by_number = {number: {"head_dim": 512, "num_key_value_heads": 1} for number in ("1", "3")}
    left_out = {"num_global_key_value_heads": None}

    assert read(LARGE) == read(LARGE | left_out | {"per_layer_config": by_number})
    assert [layer.heads for layer in read(LARGE).stack[:2]] == [Heads(2, 16), Heads(1, 512, key_is_value=True)]  # type: ignore[attr-defined]
    assert list(read(LARGE).layers[:2]) == [PagedLayer(2, 2, 16, 16, 512), PagedLayer(1, 4, 512, 512)]


def test_layers_that_share_keys_and_values_keep_none() -> None:
    """They read those of the last layer of their kind that has its own."""
    found = read(SMALL)

    assert [layer.source for layer in found.stack] == [None, None, 0, 1]  # type: ignore[attr-defined]
    assert len(found.layers) == 2


def test_the_unified_one_has_no_embeddings_of_layers_unless_it_says_so() -> None:
    named, typed = (
        {"architectures": ["Gemma4UnifiedForCausalLM"]},
        {"model_type": "gemma4_unified_text", "architectures": None},
    )

    assert read(LARGE | named) == read(LARGE | typed | {"hidden_size_per_layer_input": None})
    assert read(SMALL).per_layer.width == 256  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        ({"use_bidirectional_attention": "all"}, "only models that write from left to right are served"),
        ({"num_kv_shared_layers": 3}, "num_kv_shared_layers leaves no full_attention"),
        ({"vocab_size_per_layer_input": 66}, "vocab_size_per_layer_input must be at least vocab_size"),
        ({"per_layer_config": {"1": {"head_dim": 0}}}, "head_dim is 0, must be a positive integer"),
        ({"per_layer_config": {"3": {"head_dim": 32}}}, "layer 3 shares keys and values of other sizes"),
    ],
)
def test_what_is_not_served_is_refused(change: dict[str, Any], misfit: str) -> None:
    with pytest.raises(ModelError, match=misfit):
        read(SMALL | change)
