"""The GGUF reader: header values, Hugging Face names and row order, and every way a file can be broken."""

import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.gguf import UNREAD
from models.llama import GGUF
from models.registry import build
from models.storage import Blocks, storage_of
from neuron_jax.weights import gguf
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.gguf import GgufFile
from neuron_jax.weights.gguf_checkpoint import GgufCheckpoint, halves_from_pairs, own_name
from neuron_jax.weights.gguf_formats import FORMATS
from tests.fakes.family_files import CONFIGS, METADATA, MORE
from tests.fakes.weight_files import GGUF_LLAMA, gguf_tensors, write_gguf


def written(folder: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A tiny llama, with header keys changed (None removes; dots are written as __)."""
    header = GGUF_LLAMA | {key.replace("__", "."): value for key, value in changes.items()}
    path = folder / "tiny.gguf"
    write_gguf(path, {k: v for k, v in header.items() if v is not None}, gguf_tensors() if tensors is None else tensors)
    return path


def misfits(path: Path) -> list[str]:
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path)
    assert caught.value.kind == "bad_checkpoint"
    return list(caught.value.extras["misfits"])


def test_header_values_come_as_python_values(tmp_path: Path) -> None:
    """Strings, lists, integers, floats and booleans survive."""
    path = written(tmp_path, x__flag=True, x__numbers=[1, 2, 3], x__share=0.5)
    with GgufFile(path) as file:
        found = file.metadata

    assert (found["x.flag"], found["x.numbers"], found["x.share"]) == (True, [1, 2, 3], 0.5)
    assert found["tokenizer.ggml.tokens"] == ["a", "b", "c", "é"]


def test_the_header_becomes_a_config(tmp_path: Path) -> None:
    """The config builds a model that wants exactly the file's tensors."""
    with open_checkpoint(written(tmp_path)) as checkpoint:
        model = build(checkpoint.config)
        wanted = {part.name: part.shape for rule in model.rules for part in getattr(rule, "parts", ())}

        assert wanted == {name: info.shape for name, info in checkpoint.tensors.items()}
        assert checkpoint.config["tie_word_embeddings"] is True


def test_rows_of_q_and_k_are_unpermuted(tmp_path: Path) -> None:
    """The file's interleaved rotary pairs come out as two halves per head; v is left alone."""
    tensors = gguf_tensors()
    _, shape, raw = tensors["blk.0.attn_q.weight"]
    stored = np.frombuffer(raw, np.float32).reshape(shape)
    with open_checkpoint(written(tmp_path)) as checkpoint:
        q = checkpoint.read("model.layers.0.self_attn.q_proj.weight")
        v = checkpoint.read("model.layers.0.self_attn.v_proj.weight")

    np.testing.assert_array_equal(q, stored[[0, 2, 1, 3, 4, 6, 5, 7]])
    np.testing.assert_array_equal(v.tobytes(), tensors["blk.0.attn_v.weight"][2])


def quantized(shape: tuple[int, int], seed: int) -> tuple[int, tuple[int, ...], bytes]:
    """A Q4_1 tensor."""
    raw = np.random.default_rng(seed).integers(0, 256, (shape[0] * shape[1] // 32, 20)).astype(np.uint8)
    raw[:, :4] = np.random.default_rng(seed).standard_normal((len(raw), 2)).astype(np.float16).view(np.uint8)
    return 3, shape, raw.tobytes()


def test_blocks_come_as_they_are_stored(tmp_path: Path) -> None:
    """The header alone tells the storage; blocks of q have their rows in Hugging Face's order as its floats have."""
    tensors = gguf_tensors() | {
        "blk.0.attn_q.weight": quantized((8, 64), 1),
        "blk.0.attn_v.weight": quantized((4, 64), 2),
        "blk.0.ffn_norm.weight": (1, (8,), np.arange(8, dtype="<f2").tobytes()),
    }
    with open_checkpoint(written(tmp_path, tensors)) as checkpoint:
        q, v, norm = (
            checkpoint.stored(f"model.layers.0.{name}.weight")
            for name in ("self_attn.q_proj", "self_attn.v_proj", "post_attention_layernorm")
        )
        stored = {name: checkpoint.stored(name) for name in checkpoint.tensors}
        read = checkpoint.read("model.layers.0.self_attn.q_proj.weight")
        promised = dict(checkpoint.storage)

    assert isinstance(q, Blocks)
    assert isinstance(v, Blocks)
    assert isinstance(norm, np.ndarray)
    assert {
        name: tensor.storage if isinstance(tensor, Blocks) else storage_of(tensor.dtype)
        for name, tensor in stored.items()
    } == promised
    assert (q.storage, norm.dtype) == (FORMATS[3].storage, np.float16)
    raw = np.frombuffer(tensors["blk.0.attn_q.weight"][2], np.uint8).reshape(-1, 20)
    scales = raw[:, :2].copy().view(np.float16).reshape(8, 2)
    np.testing.assert_array_equal(q.scale, scales[[0, 2, 1, 3, 4, 6, 5, 7]])
    np.testing.assert_array_equal(read, q.dequantize())


def test_blocks_are_unpacked_in_parts_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor of many parts, the last of them shorter, has the values it has in one."""
    path = written(tmp_path, gguf_tensors() | {"blk.0.ffn_up.weight": quantized((23, 64), 1)})
    found = []
    for chunk in (1, 200, 1 << 20):
        monkeypatch.setattr(gguf, "_CHUNK", chunk)
        with GgufFile(path) as file:
            blocks = file.read(file.tensors["blk.0.ffn_up.weight"])
            assert isinstance(blocks, Blocks)
            found.append(blocks.dequantize())

    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])


def split(folder: Path, names: tuple[str, ...] = ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")) -> list[Path]:
    """The tiny llama in two files, as llama.cpp splits: all keys in the first, some tensors in each."""
    tensors = list(gguf_tensors().items())
    paths = [folder / name for name in names]
    write_gguf(paths[0], GGUF_LLAMA | {"split.no": 0, "split.count": 2}, dict(tensors[:4]))
    write_gguf(paths[1], {"split.no": 1, "split.count": 2}, dict(tensors[4:]))
    return paths


def test_several_files_are_one_model(tmp_path: Path) -> None:
    """Whichever of them is opened, the tensors are those of one whole file."""
    paths = split(tmp_path)
    with open_checkpoint(written(tmp_path)) as whole:
        expected = {name: whole.read(name) for name in whole.tensors}
    for path in paths:
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.config["num_hidden_layers"] == 1
            assert set(checkpoint.tensors) == set(expected)
            for name, tensor in expected.items():
                np.testing.assert_array_equal(checkpoint.read(name), tensor)


def test_missing_and_broken_parts_are_told_by_name(tmp_path: Path) -> None:
    """A file that is gone, one that is damaged, tensors in both, and a part under a name of its own."""
    first, second = split(tmp_path)
    second.write_bytes(b"JUNK" + second.read_bytes()[4:])
    assert misfits(first) == ["m-00002-of-00002.gguf: not a usable GGUF file: it starts with b'JUNK', not b'GGUF'"]

    second.write_bytes(first.read_bytes())
    assert "token_embd.weight is in m-00002-of-00002.gguf and in another file" in misfits(first)

    second.unlink()
    assert misfits(first)[0].startswith("m-00002-of-00002.gguf: is not there")

    assert (
        "one of 2 files, which must be named ...-00001-of-00002.gguf" in misfits(first.rename(tmp_path / "m.gguf"))[0]
    )


def test_a_big_endian_file_is_told(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[4:8] = content[4:8][::-1]
    path.write_bytes(content)

    assert misfits(path) == ["not a usable GGUF file: it is big-endian, and only little-endian files can be read"]


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    """Bytes that were there when it was opened, and are gone when they are read."""
    path = written(tmp_path)
    with open_checkpoint(path) as checkpoint:
        path.write_bytes(path.read_bytes()[:-700])
        with pytest.raises(WeightsError, match="cut short: no byte"):
            checkpoint.read("model.layers.0.mlp.up_proj.weight")


def test_unpermuting_inverts_the_converter() -> None:
    """What the GGUF converter does to q and k (split halves, swap, flatten) is undone, for matrices and biases."""
    for shape in ((12, 5), (12,)):
        original = np.arange(np.prod(shape)).reshape(shape)
        permuted = np.swapaxes(original.reshape(2, 2, 3, *shape[1:]), 1, 2).reshape(shape)

        np.testing.assert_array_equal(halves_from_pairs(permuted, 2), original)


def test_rope_factors_become_a_scaling(tmp_path: Path) -> None:
    """Llama 3's rope_freqs tensor goes into the config, not to the model's tensors."""
    factors = np.array([1.0, 8.0], "<f4")
    path = written(tmp_path, gguf_tensors() | {"rope_freqs.weight": (0, (2,), factors.tobytes())})
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config["rope_scaling"] == {"rope_type": "factors", "factors": [1.0, 8.0]}
        assert "rope_freqs.weight" not in checkpoint.tensors
        build(checkpoint.config)


def test_a_window_makes_it_a_mistral(tmp_path: Path) -> None:
    """GGUF calls Mistral a llama; its window tells them apart."""
    with open_checkpoint(written(tmp_path, llama__attention__sliding_window=16)) as checkpoint:
        assert checkpoint.config["architectures"] == ["MistralForCausalLM"]
        assert checkpoint.config["sliding_window"] == 16


def test_unknown_tensors_keep_their_names() -> None:
    """A tensor that nobody knows is reported under the name the user can find in the file."""
    assert own_name(GGUF, "blk.3.ffn_up.weight") == "model.layers.3.mlp.up_proj.weight"
    assert own_name(GGUF, "blk.3.attn_wild.weight") == "blk.3.attn_wild.weight"
    assert own_name(GGUF, "token_embd.weight") == "model.embed_tokens.weight"


def test_a_file_cut_anywhere_is_refused_whole(tmp_path: Path) -> None:
    """At every hundredth length the error is ours, and a file that lost tensor bytes lists each tensor that did."""
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 101):
        path.write_bytes(whole[:length])

        assert misfits(path)

    path.write_bytes(whole[:-700])
    assert all(row.startswith("cut short: blk.0.ffn_") for row in misfits(path))
    assert len(misfits(path)) == 2


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ((0, b"JUNK"), "it starts with b'JUNK'"),
        ((4, struct.pack("<I", 9)), "version 9"),
        ((8, struct.pack("<Q", 2**60)), "cut short"),
        ((16, struct.pack("<Q", 2**60)), "cut short"),
    ],
)
def test_a_damaged_header_is_told(tmp_path: Path, patch: tuple[int, bytes], message: str) -> None:
    """Wrong magic, unknown version, impossible counts."""
    path = written(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[patch[0] : patch[0] + len(patch[1])] = patch[1]
    path.write_bytes(damaged)

    assert message in misfits(path)[0]


def test_what_is_there_twice_is_told(tmp_path: Path) -> None:
    """Keys, names of tensors, and bytes: whichever of the two were taken could be the wrong one."""
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"tokenizer.ggml.bos_", b"tokenizer.ggml.eos_"))
    assert misfits(path) == ["not a usable GGUF file: tokenizer.ggml.eos_token_id is there twice"]

    path.write_bytes(whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_k.weight"))
    assert misfits(path) == ["tensors are named twice: blk.0.attn_k.weight"]

    offset = whole.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8 + 4
    path.write_bytes(whole[:offset] + struct.pack("<Q", 32) + whole[offset + 8 :])
    assert misfits(path) == ["output_norm.weight begins within token_embd.weight"]


WORDS = [*(key.removeprefix("llama.") for key in GGUF_LLAMA if key.startswith("llama.")), "rope.dimension_count"]


@given(
    st.sampled_from(
        [*(f"llama.{word}" for word in WORDS), "llama.rope.scaling.type", "split.count", "general.alignment"]
    ),
    st.one_of(st.booleans(), st.integers(0, 2**32 - 1), st.floats(width=32), st.text(max_size=3), st.just([1, 2])),
)
def test_any_value_in_the_header_is_taken_or_told(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    """What the model's code or the reader calculates with is a number, or the file is refused as a checkpoint."""
    path = written(tmp_path_factory.mktemp("any"), **{key.replace(".", "__"): value})
    with suppress(WeightsError):
        open_checkpoint(path).close()


@pytest.mark.parametrize(
    ("family", "key", "value", "message"),
    [
        (
            "gemma4",
            "attention.sliding_window_pattern",
            5,
            "attention.sliding_window_pattern, .* one is missing, or is none: .*int",
        ),
        (
            "gemma4",
            "feed_forward_length",
            None,
            "gemma4.feed_forward_length, .* one is missing, or is none: .*'widths'",
        ),
        ("qwen35", "ssm.time_step_rank", 2**32 - 1, "4294967295, must be a positive integer"),
    ],
)
def test_what_a_family_calculates_with_is_told(tmp_path: Path, family: str, key: str, value: Any, message: str) -> None:
    """Before anything is put in an order of so many rows."""
    config = CONFIGS[family] | {"linear_num_value_heads": value, "linear_num_key_heads": 1}
    header = (
        {name: config[own] for name, own in METADATA[family].items() if own in config}
        | MORE.get(family, {})
        | {key: value}
    )
    said = {f"{family}.{name}": one for name, one in header.items() if one is not None}
    write_gguf(
        tmp_path / "m.gguf",
        {"general.architecture": family} | said,
        {"token_embd.weight": (0, (300, 64), bytes(76800))},
    )

    assert re.search(message, misfits(tmp_path / "m.gguf")[0])


def test_arrays_within_arrays_end_somewhere(tmp_path: Path) -> None:
    """A file that is nothing but the beginnings of arrays is malformed, instead of being read as deep as Python goes."""
    path = tmp_path / "deep.gguf"
    key = struct.pack("<Q", 1) + b"x" + struct.pack("<I", 9)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 9, 1) * 5000)

    assert "not a usable GGUF file: an array of 1 values, 9 deep in others" in misfits(path)[0]


def test_an_array_that_no_model_has_is_not_read(tmp_path: Path) -> None:
    """As Python objects its values would take ten times the file."""
    path = tmp_path / "long.gguf"
    key = struct.pack("<Q", 1) + b"x" + struct.pack("<I", 9)
    count = gguf._MAX_VALUES + 1
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key + struct.pack("<IQ", 0, count) + bytes(count))

    assert f"an array of {count} values" in misfits(path)[0]


def test_another_architecture_is_told(tmp_path: Path) -> None:
    """The message has the name found and the known ones."""
    (misfit,) = misfits(written(tmp_path, general__architecture="rwkv6"))

    assert misfit.startswith("general.architecture is 'rwkv6', which is not served; served are ")
    assert "'llama'" in misfit


@pytest.mark.parametrize("architecture", ["jina-bert-v2", "jina-bert-v3", "neo-bert", "nomic-bert-moe"])
def test_an_encoder_that_is_not_served_is_told_why(tmp_path: Path, architecture: str) -> None:
    """Of what llama.cpp embeds with besides, what it has that no family here has."""
    (misfit,) = misfits(written(tmp_path, general__architecture=architecture))

    assert misfit.startswith(
        f"general.architecture is '{architecture}', which is not served ({UNREAD[architecture]}); "
    )


def test_all_missing_keys_are_told(tmp_path: Path) -> None:
    """Two keys and the embedding gone: three rows in one error."""
    tensors = gguf_tensors()
    del tensors["token_embd.weight"]
    path = written(tmp_path, tensors, llama__block_count=None, llama__context_length=None)

    assert misfits(path) == [
        "llama.block_count is missing",
        "llama.context_length is missing",
        "tensor token_embd.weight is missing",
    ]


def test_an_unreadable_tensor_type_is_told(tmp_path: Path) -> None:
    """The type's number, the tensor, and what is readable."""
    tensors = gguf_tensors() | {"odd.weight": (99, (8,), b"\0" * 32)}

    assert "odd.weight has ggml type 99; readable are F32" in misfits(written(tmp_path, tensors))[0]


def test_a_llama_with_experts_is_mixtral(tmp_path: Path) -> None:
    """GGUF calls it a llama too."""
    with GgufCheckpoint(written(tmp_path, llama__expert_count=8)) as checkpoint:
        assert checkpoint.config["architectures"] == ["MixtralForCausalLM"]


def test_the_demo_is_read_under_hugging_face_names(demo_gguf: Path) -> None:
    """272 tensors, 134.5 million weights, none left under a GGUF name."""
    with GgufCheckpoint(demo_gguf) as checkpoint:
        assert len(checkpoint.tensors) == 272
        assert sum(int(np.prod(info.shape)) for info in checkpoint.tensors.values()) == 134_515_008
        assert all(name.startswith("model.") for name in checkpoint.tensors)
