"""What `describe` finds in GGUF headers and in folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuron_jax.weights.describe import describe
from neuron_jax.weights.errors import WeightsError
from tests.fakes.tiny_llama import CONFIG
from tests.fakes.weight_files import GGUF_LLAMA, gguf_tensors, write_gguf, write_safetensors

CONFIG = CONFIG | {"max_position_embeddings": 99, "bos_token_id": 1, "eos_token_id": 2}


def folder(path: Path, **files: Any) -> Path:
    """A model folder; `files` are JSON files by stem."""
    contents = {
        "config": CONFIG,
        "tokenizer": {"version": "1.0", "model": {}},
    } | files
    for stem, value in contents.items():
        (path / f"{stem}.json").write_text(json.dumps(value))
    write_safetensors(path / "model.safetensors", {"x": np.zeros((3, 5), np.float16)})
    return path


def test_a_gguf_header_describes_its_model(tmp_path: Path) -> None:
    """Context, ids, template, tokenizer keys and sizes come from the header alone."""
    path = tmp_path / "tiny.gguf"
    write_gguf(path, GGUF_LLAMA | {"tokenizer.ggml.eot_token_id": 3}, gguf_tensors())
    found = describe(path)

    assert (found.context_length, found.bos_id, found.eos_ids) == (64, 1, (2, 3))
    assert found.chat_template == "{{ messages }}"
    assert found.tokenizer.json is None
    assert found.tokenizer.gguf is not None
    assert found.tokenizer.gguf["tokenizer.ggml.tokens"] == ["a", "b", "c", "é"]
    assert found.weight_bytes == 4 * found.parameters == 4 * (32 + 3 * 8 + 2 * 64 + 2 * 32 + 3 * 96)
    assert found.generation_config == {}


def test_advice_beside_a_gguf_counts(tmp_path: Path) -> None:
    """generation_config.json in the same folder is the model's."""
    write_gguf(tmp_path / "tiny.gguf", GGUF_LLAMA, gguf_tensors())
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.2}')

    assert describe(tmp_path / "tiny.gguf").generation_config == {"temperature": 0.2}


def test_a_folder_describes_its_model(tmp_path: Path) -> None:
    """Ids come from generation_config.json before config.json; sizes from the tensor table."""
    found = describe(folder(tmp_path, generation_config={"eos_token_id": [7, 8], "top_p": 0.5}))

    assert (found.context_length, found.bos_id, found.eos_ids) == (99, 1, (7, 8))
    assert found.generation_config["top_p"] == 0.5
    assert (found.parameters, found.weight_bytes) == (15, 30)
    assert found.tokenizer.json == b'{"version": "1.0", "model": {}}'
    assert found.chat_template is None


@pytest.mark.parametrize(
    "template", ["T", [{"name": "tool_use", "template": "X"}, {"name": "default", "template": "T"}]]
)
def test_a_chat_template_is_found_in_the_tokenizer_config(tmp_path: Path, template: Any) -> None:
    """As text, or as the one named default."""
    found = describe(folder(tmp_path, tokenizer_config={"chat_template": template}))

    assert found.chat_template == "T"
    assert found.eos_ids == (2,)


def test_a_chat_template_file_comes_first(tmp_path: Path) -> None:
    """chat_template.jinja wins over tokenizer_config.json."""
    (tmp_path / "chat_template.jinja").write_text("file")

    assert describe(folder(tmp_path, tokenizer_config={"chat_template": "T"})).chat_template == "file"


NAMED = [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "L"}, {"name": "default", "template": "T"}]


@pytest.mark.parametrize(
    ("files", "said", "found"),
    [
        ({}, NAMED, ("T", "L")),
        ({}, NAMED[:2], (None, "L")),
        ({"chat_template.jinja": "D", "additional_chat_templates/tool_use.jinja": "U"}, NAMED, ("D", "U")),
        ({"chat_template.jinja": "D", "additional_chat_templates/rag.jinja": "G"}, NAMED, ("D", None)),
        ({"chat_template.jinja": "D"}, NAMED, ("D", None)),
        ({"additional_chat_templates/tool_use.jinja": "U"}, NAMED, ("T", "U")),
        ({"chat_template.json": '{"chat_template": "J"}'}, None, ("J", None)),
        ({"chat_template.json": '{"chat_template": "J"}'}, "T", ("T", None)),
    ],
)
def test_templates_have_names_and_files_come_before_lists(
    tmp_path: Path, files: dict[str, str], said: Any, found: tuple[str | None, str | None]
) -> None:
    """The default one and that of tools, as transformers takes them: where there are files, the list does not count."""
    path = folder(tmp_path, tokenizer_config={} if said is None else {"chat_template": said})
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content)
    described = describe(path)

    assert (described.chat_template, described.tool_template) == found


def test_a_gguf_header_has_templates_by_name(tmp_path: Path) -> None:
    """As llama.cpp's converter writes a list of them."""
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "U"}
    write_gguf(tmp_path / "tiny.gguf", GGUF_LLAMA | named, gguf_tensors())
    described = describe(tmp_path / "tiny.gguf")

    assert (described.chat_template, described.tool_template) == ("{{ messages }}", "U")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """A model that nobody can talk to is told before it is loaded."""
    path = folder(tmp_path)
    (path / "tokenizer.json").unlink()

    with pytest.raises(WeightsError, match=r"has no tokenizer.json"):
        describe(path)


@pytest.mark.parametrize("length", [None, 0, "many"])
def test_a_context_that_is_none_is_refused(tmp_path: Path, length: Any) -> None:
    """The field's name and value are in the message."""
    with pytest.raises(WeightsError, match=f"max_position_embeddings is {length!r}"):
        describe(folder(tmp_path, config=CONFIG | {"max_position_embeddings": length}))


def test_the_demo_is_described(demo_gguf: Path) -> None:
    """What its model card says."""
    found = describe(demo_gguf)

    assert (found.context_length, found.eos_ids, found.bos_id) == (8192, (2,), 1)
    assert (found.generation_config["temperature"], found.generation_config["top_p"]) == (0.2, 0.9)
    assert found.parameters == 134_515_008
    assert found.chat_template is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["Unheard"]}, "found Unheard; known are"),
        ({"hidden_act": 5, "rope_theta": "x"}, "rope_theta is 'x', must be a positive number; hidden_act is 5"),
    ],
)
def test_what_its_family_finds_wrong_is_told(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """Before anybody loads it, and all of it."""
    with pytest.raises(WeightsError, match=words):
        describe(folder(tmp_path, config=CONFIG | change))
