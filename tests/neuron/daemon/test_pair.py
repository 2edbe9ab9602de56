"""The prompt that asks of a pair, where it is no template but text with two words in it, as a GGUF file has it."""

import asyncio
from pathlib import Path

import pytest

from neuron_jax.daemon.model_text import read_text
from neuron_jax.daemon.problems import Problem
from tests.fakes.weight_files import GGUF_LLAMA, gguf_tensors, write_gguf


def asked(folder: Path, prompt: str) -> str:
    """Of the query "{document}" and the document "b"."""
    write_gguf(folder / "m.gguf", GGUF_LLAMA | {"tokenizer.chat_template.rerank": prompt}, gguf_tensors())
    text = read_text(folder / "m.gguf")
    return asyncio.run(text.render_pair(None)).fill("{document}", "b").text  # type: ignore[arg-type]  # nothing is rendered


def test_both_texts_come_where_the_words_stand(tmp_path: Path) -> None:
    """Whatever they say themselves."""
    assert asked(tmp_path, "c{query}a{document}{query}") == "c{document}ab{document}"


def test_a_prompt_without_a_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no place for the role document"):
        asked(tmp_path, "c{query}")
