"""The text part of a larger model: its config, and its tensors under both ways of naming them."""

from typing import Any

import pytest

from models.errors import ModelError
from models.registry import family_of
from models.wrapper import is_wrapper, text_config, text_names

TEXT: dict[str, Any] = {"model_type": "llama", "hidden_size": 8}
WHOLE: dict[str, Any] = {
    "architectures": ["AnyForConditionalGeneration"],
    "model_type": "any",
    "eos_token_id": 2,
    "text_config": TEXT,
}


def test_the_text_part_has_a_family_of_its_own() -> None:
    """By its model_type; what the whole says besides counts where the part says nothing."""
    assert text_config(WHOLE) == TEXT | {"eos_token_id": 2}
    assert text_config(WHOLE | {"text_config": TEXT | {"eos_token_id": 3}})["eos_token_id"] == 3
    assert "LlamaForCausalLM" in family_of(text_config(WHOLE)).architectures
    assert text_config(text_config(WHOLE)) == text_config(WHOLE)


@pytest.mark.parametrize("names", [["LlamaForSequenceClassification"], ["Unheard"]])
def test_an_architecture_that_is_named_counts_more_than_a_type(names: list[str]) -> None:
    """A classifier of the family is not the family's language model."""
    with pytest.raises(ModelError, match=f"found {names[0]}"):
        family_of(TEXT | {"architectures": names})


@pytest.mark.parametrize(
    "change", [{"architectures": ["AnyForRetrieval"]}, {"text_config": None}, {"text_config": 5}, {"architectures": 5}]
)
def test_what_is_no_wrapper_stays(change: dict[str, Any]) -> None:
    """Only what generates text, and has a config for it."""
    assert not is_wrapper(WHOLE | change)
    assert text_config(WHOLE | change) == WHOLE | change


@pytest.mark.parametrize(
    ("text", "head"),
    [("model.language_model.", "lm_head."), ("language_model.model.", "language_model.lm_head.")],
)
def test_tensors_of_the_text_part_lose_their_prefix(text: str, head: str) -> None:
    """What sees is not among them."""
    stored = [f"{text}norm.weight", f"{head}weight", "model.vision_tower.a", "vision_tower.b", "model.norm.weight"]

    assert text_names([*stored, "mtp.fc.weight"])["mtp.fc.weight"] == "mtp.fc.weight"  # which drafts tokens
    assert text_names(stored) == {"model.norm.weight": stored[0], "lm_head.weight": stored[1]}


def test_a_text_part_that_was_saved_alone_keeps_its_names() -> None:
    """With the config of the whole."""
    assert text_names(["model.norm.weight", "odd"]) == {"model.norm.weight": "model.norm.weight", "odd": "odd"}
