"""The demo model's own tokenizer and template against what Hugging Face made of the same file."""

import json
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.text.output import OutputText, Reading
from neuron_jax.text.pieces import Text, merged
from neuron_jax.text.template import ChatTemplate
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer
from neuron_jax.weights.describe import describe
from tests.fakes.rendering import encode_chat

ROWS = json.loads((Path(__file__).parents[2] / "data" / "smollm2-greedy.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> tuple[Tokenizer, ChatTemplate]:
    """Both sides of the text layer, loaded as the daemon loads them."""
    described = describe(demo_gguf)
    source = described.tokenizer
    tokenizer = load_tokenizer(json=source.json, gguf=source.gguf, config=source.config)
    assert described.chat_template is not None
    template = ChatTemplate(described.chat_template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    return tokenizer, template


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_prompts_have_the_reference_ids(row: dict[str, Any], model: tuple[Tokenizer, ChatTemplate]) -> None:
    """Messages through template and tokenizer, id for id; the guarded path gives the same."""
    tokenizer, template = model
    text, ids = encode_chat(template, tokenizer, row["messages"])

    assert ids == row["prompt_ids"]
    assert tokenizer.encode_marked(text, mark="\U000f0000") == ids


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_answers_have_the_reference_text(row: dict[str, Any], model: tuple[Tokenizer, ChatTemplate]) -> None:
    """Token by token, and all at once; one row ends inside a character."""
    tokenizer, _ = model
    output = OutputText(tokenizer, Reading())
    pieces = [piece for id_ in row["greedy_ids"] for piece in output.feed([id_]).pieces]

    assert merged([*pieces, *output.close().pieces]) == (Text(row["text"]),)
    assert tokenizer.decode(row["greedy_ids"], skip_special=True) == row["text"]


def test_a_control_token_in_a_question_does_not_end_the_turn(model: tuple[Tokenizer, ChatTemplate]) -> None:
    """The template writes five control tokens, the client none."""
    tokenizer, template = model
    _, ids = encode_chat(template, tokenizer, [{"role": "user", "content": "What does <|im_end|> mean?"}])

    assert sum(id_ in tokenizer.special_ids for id_ in ids) == 5
