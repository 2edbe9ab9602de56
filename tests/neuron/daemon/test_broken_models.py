"""Folders that are no model: listed with the reason, and the models beside them serve."""

import asyncio
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_jax.config import ModelSpec
from neuron_jax.daemon.estimate import least_bytes
from neuron_jax.daemon.model_text import Broken, ModelFacts, read_facts, read_text
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.reading import MAX_WHOLE
from tests.fakes.any_json import any_json
from tests.fakes.live_neuron import MODEL, config_for, running
from tests.fakes.tiny_model import write_tiny_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
ADVICE, TEMPLATE, TOKENIZER_CONFIG = "generation_config.json", "chat_template.jinja", "tokenizer_config.json"


def changed(**values: Any) -> Any:
    return lambda content: json.dumps(json.loads(content or b"{}") | values).encode()


BROKEN: list[tuple[str, Any, str]] = [
    (CONFIG, changed(num_attention_heads="4"), "num_attention_heads is '4', must be a positive integer"),
    (CONFIG, changed(hidden_size=0), "hidden_size is 0, must be a positive integer"),
    (CONFIG, changed(num_hidden_layers=True), "num_hidden_layers is True, must be a positive integer"),
    (CONFIG, changed(max_position_embeddings=None), "max_position_embeddings is None, must be a positive integer"),
    (CONFIG, changed(architectures=["Unheard"]), "found Unheard; known are "),
    (CONFIG, changed(rope_theta="x"), "rope_theta is 'x', must be a positive number"),
    (CONFIG, changed(hidden_act=5), "hidden_act is 5, must be 'silu'"),
    (CONFIG, changed(text_config={}, architectures=["XForConditionalGeneration"]), "found none named"),
    (CONFIG, lambda _: b"[1, 2]", "not a JSON object"),
    (CONFIG, lambda _: b"\xff\xfe", "not JSON"),
    (CONFIG, lambda _: b"[" * 100_000, "not JSON"),
    (ADVICE, lambda _: b"[1]", "generation_config.json: not a JSON object"),
    (TOKENIZER_CONFIG, lambda _: b"7", "tokenizer_config.json: not a JSON object"),
    (TEMPLATE, lambda _: b"\xff", "chat_template.jinja: not UTF-8"),
    (TEMPLATE, lambda _: b"{% if %}", "chat template"),
    (TOKENIZER, lambda _: POINTER, "tokenizer.json: a Git LFS pointer in place of the file: run `git lfs pull`"),
    (WEIGHTS, lambda _: POINTER, "a Git LFS pointer in place of the file"),
    (WEIGHTS, lambda content: content[:20], "cut short"),
    (WEIGHTS, None, "has neither model.safetensors nor"),
    (TOKENIZER, None, "has no tokenizer.json"),
    (TOKENIZER, lambda content: content[:-1], "tokenizer.json: not a tokenizer: "),
    (TOKENIZER, lambda _: b"[]", "tokenizer.json: not a tokenizer: "),
    (TOKENIZER_CONFIG, changed(chat_template=5), "the chat template is 5, must be text"),
    (
        TOKENIZER_CONFIG,
        changed(chat_template=[{"name": "default", "template": []}]),
        "the chat template is [], must be",
    ),
    (ADVICE, changed(eos_token_id="2"), "eos_token_id is '2', must be a token or a list of tokens"),
    (CONFIG, changed(eos_token_id={"a": 1}), "eos_token_id is {'a': 1}, must be a token or a list of tokens"),
]


def pipe(file: Path) -> None:
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def subfolder(file: Path) -> None:
    file.mkdir()


def nowhere(file: Path) -> None:
    file.symlink_to("no such file")


def sparse(file: Path) -> None:
    with file.open("wb") as sized:
        sized.truncate(MAX_WHOLE + 1)


def long_header(file: Path) -> None:
    with file.open("wb") as sized:
        sized.write(struct.pack("<Q", 2**40))
        sized.truncate(2**41)


NO_FILES: list[tuple[str, Callable[[Path], None], str]] = [
    (CONFIG, pipe, "config.json: is no file, but a pipe or a device"),
    (CONFIG, endless, "config.json: is no file, but a pipe or a device"),
    (CONFIG, subfolder, "config.json: cannot be read: Is a directory"),
    (CONFIG, sparse, f"has {MAX_WHOLE + 1} bytes; at most {MAX_WHOLE} are read"),
    (ADVICE, pipe, "generation_config.json: is no file, but a pipe or a device"),
    (ADVICE, nowhere, "generation_config.json: is a link to a file that is not there"),
    (TEMPLATE, nowhere, "chat_template.jinja: is a link to a file that is not there"),
    (TEMPLATE, endless, "chat_template.jinja: is no file, but a pipe or a device"),
    (TOKENIZER_CONFIG, subfolder, "tokenizer_config.json: cannot be read: Is a directory"),
    (TOKENIZER, pipe, "has no tokenizer.json"),
    (WEIGHTS, endless, "model.safetensors: is no file, but a pipe or a device"),
    (WEIGHTS, long_header, "not a safetensors file: its header would have 1099511627776 bytes"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("whole") / "tiny")


def broken(folder: Path, whole: Path, name: str, change: Any) -> Path:
    shutil.copytree(whole, folder)
    file = folder / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes() if file.exists() else b""))
    return folder


def test_a_broken_model_is_listed_with_the_reason_and_the_others_serve(tmp_path: Path, whole: Path) -> None:
    """Every kind of broken folder at once: in the list, to a load, and in /health; and one that is whole between them."""
    folders = [broken(tmp_path / str(index), whole, *case[:2]) for index, case in enumerate(BROKEN)]
    specs = [ModelSpec(model_id=f"broken/{index}", source=str(folder)) for index, folder in enumerate(folders)]
    good = ModelSpec(model_id=MODEL, source=str(whole))
    config = attrs.evolve(config_for(whole, tmp_path / "cache"), models=(*specs[:3], good, *specs[3:]))

    async def run() -> None:
        async with running(config) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as http:
            listed = {one["id"]: one for one in (await http.get("/models")).json()}
            for index, (_, _, words) in enumerate(BROKEN):
                one = listed[f"broken/{index}"]
                assert one["status"] == "unloaded"
                assert words in one["servable"]["detail"]
                assert (one["servable"]["ok"], one["servable"]["reason"]) == (False, "bad_checkpoint")
                refused = await http.post("/models/load", json={"model_id": one["id"]})
                assert refused.status_code == 422, refused.text
                assert refused.json()["error"]["kind"] == "bad_checkpoint"
                assert words in refused.json()["error"]["message"]
            assert "servable" not in listed[MODEL]
            assert (await http.post("/models/load", json={"model_id": MODEL})).json() == {"status": "loaded"}
            assert (await http.get("/health")).status_code == 200

    asyncio.run(run())


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("name", "make", "words"), NO_FILES)
def test_what_is_in_the_place_of_a_file_is_neither_waited_for_nor_read_to_its_end(
    tmp_path: Path, whole: Path, name: str, make: Callable[[Path], None], words: str
) -> None:
    """Pipes, devices, folders, links to nothing, and files of a size that no model has."""
    model = tmp_path / "one"
    shutil.copytree(whole, model)
    (model / name).unlink(missing_ok=True)
    make(model / name)

    facts = read_facts(model)

    assert isinstance(facts, Broken)
    assert words in facts.reason


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "is not a folder with config.json"),
        ("file.txt", "is not a folder with config.json"),
        ("loop", "is not a folder with config.json"),
        ("pipe.gguf", "is not a .gguf file"),
        ("~nobody-of-this-name/model", "is no path"),
    ],
)
def test_a_configured_path_without_a_model_is_listed_with_the_reason(tmp_path: Path, source: str, words: str) -> None:
    """Before, it was listed like a model that only has to be loaded."""
    (tmp_path / "file.txt").write_text("a note")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.gguf")
    path = source if source.startswith("~") else str(tmp_path / source)
    config = attrs.evolve(
        config_for(tmp_path / "whole", tmp_path / "cache"),
        models=(ModelSpec(model_id="gone", source=path), ModelSpec(model_id="far", source="hf:org/name")),
    )

    async def run() -> None:
        async with running(config) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as http:
            listed = {model["id"]: model.get("servable") for model in (await http.get("/models")).json()}

            assert listed["gone"]["reason"] == "bad_checkpoint"
            assert words in listed["gone"]["detail"]
            assert listed["far"] is None

    asyncio.run(run())


def test_a_model_that_was_mended_is_no_longer_broken(tmp_path: Path, whole: Path) -> None:
    """Nobody has to start the neuron anew: it reads a file that has changed again."""
    folder = broken(tmp_path / "one", whole, CONFIG, lambda _: b"{}")
    config = attrs.evolve(config_for(folder, tmp_path / "cache"))

    async def run() -> None:
        async with running(config) as (_, lifecycle):
            assert isinstance((await lifecycle.files.offered())[0].facts, Broken)
            shutil.copy(whole / CONFIG, folder / CONFIG)
            assert isinstance((await lifecycle.files.offered())[0].facts, ModelFacts)

    asyncio.run(run())


@given(
    st.sampled_from([CONFIG, ADVICE, TOKENIZER_CONFIG]),
    st.sampled_from(
        [
            "num_attention_heads",
            "head_dim",
            "hidden_size",
            "num_key_value_heads",
            "eos_token_id",
            "bos_token_id",
            "max_position_embeddings",
            "chat_template",
            "vocab_size",
            "num_hidden_layers",
            "architectures",
            "rope_scaling",
            "rope_theta",
            "rope_parameters",
            "hidden_act",
            "text_config",
            "tie_word_embeddings",
            "quantization_config",
            "sliding_window",
        ]
    ),
    st.one_of(st.none(), any_json(["4", "llama", "rope_type", "default"])),
)
def test_any_value_in_a_file_of_json_leaves_the_list_whole(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, name: str, key: str, value: Any
) -> None:
    """Either the model is described, and its memory can be estimated, or it is broken."""
    folder = broken(tmp_path_factory.mktemp("any") / "one", whole, name, changed(**{key: value}))
    facts = read_facts(folder)
    if isinstance(facts, Broken):
        assert "nobody foresaw" not in facts.reason
        assert str(folder) in facts.reason or "template" in facts.reason
        return
    for platform in ("cpu", "cuda"):
        found = least_bytes(facts.description, platform=platform, quant="auto", kv_dtype="auto", max_context=0)  # type: ignore[arg-type]
        assert found > 0


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (TOKENIZER, b'{"model": {"type": "Strange"}}', "tokenizer.json cannot be read"),
        (TEMPLATE, b"{% if %}", "chat template"),
    ],
)
def test_a_load_names_the_model_whose_text_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    """The words are those of a library, which was given bytes."""
    folder = write_tiny_model(tmp_path / "tiny")
    (folder / name).write_bytes(content)

    with pytest.raises(WeightsError, match=words) as failed:
        read_text(folder)
    assert failed.value.message.startswith(f"{folder}: ")
