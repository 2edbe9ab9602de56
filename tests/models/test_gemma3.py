"""What the config of Gemma 3 says in its several ways, and what is refused."""

from typing import Any

import pytest

from models.errors import ModelError
from models.gemma3 import GGUF, read
from models.rope import frequencies

FOUR_B = {
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
"""The whole text_config of gemma-3-4b-it: all else is left to transformers' defaults."""


def test_what_the_text_part_of_4b_leaves_out() -> None:
    """8 heads of 256 over 4, tied, every sixth layer full; windows turn by their own base, which nothing scales."""
    found = read(FOUR_B)
    layers = found.stack

    assert (found.query_heads, found.kv_heads, found.head_dim, found.scale) == (8, 4, 256, 1 / 16)
    assert (found.vocab_size, found.max_positions, found.tied, found.embedding_scale) == (
        262208,
        131072,
        True,
        2560**0.5,
    )
    assert [n for n, layer in enumerate(layers) if layer.window is None] == [5, 11, 17, 23, 29]
    assert {layer.window for layer in layers} == {None, 1024}
    for layer, theta, factor in ((layers[0], 10000.0, 1), (layers[5], 1000000.0, 8)):
        assert layer.rotary is not None
        turning = frequencies(256, theta, {"rope_type": "linear", "factor": factor})
        assert layer.rotary.frequencies == tuple(turning.tolist())


def test_the_scale_of_27b_in_gguf() -> None:
    """It is told by its number of layers alone, as llama.cpp tells it."""
    header = {"hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128, "sliding_window": 1024}

    assert GGUF.finish(header | {"num_hidden_layers": 62})["query_pre_attn_scalar"] == 168
    assert GGUF.finish(header | {"num_hidden_layers": 48})["query_pre_attn_scalar"] == 128


def test_a_gguf_file_without_a_window_has_full_layers_only() -> None:
    """As llama.cpp reads it."""
    header = {"hidden_size": 2560, "num_attention_heads": 8, "head_dim": 256, "num_hidden_layers": 34}

    assert {layer.window for layer in read(GGUF.finish(header)).stack} == {None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention is true, which only models that embed have",
        ),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be null"),
        ({"num_key_value_heads": 3}, "8 attention heads do not divide among 3"),
        ({"rope_parameters": {"full_attention": 5}}, "rope_parameters is 5, must be an object"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "'dynamic' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
    ],
)
def test_a_config_that_is_not_served_is_refused(change: dict[str, Any], words: str) -> None:
    """By the key and its value."""
    with pytest.raises(ModelError, match=words):
        read(FOUR_B | change)


def test_all_misfits_are_told_once() -> None:
    """Three wrong keys, three rows, and none that follows from the stand-ins."""
    with pytest.raises(ModelError) as caught:
        read(FOUR_B | {"head_dim": "wide", "rope_theta": "x", "rope_local_base_freq": -1})

    assert [row.split()[0] for row in caught.value.misfits] == ["head_dim", "rope_local_base_freq", "rope_theta"]
