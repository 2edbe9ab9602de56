"""Checkpoints of a hybrid, of latent attention and of an encoder, and the faults that they may have; knows files, no daemon.

A fault is made in a folder or a file that was whole, and says the words that whoever loads it must be told.
"""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from attrs import frozen

from models.registry import build
from neuron_jax.weights.checkpoint import open_checkpoint
from tests.fakes.family_files import CONFIGS, write_family_gguf, write_folder
from tests.fakes.tiny_bert import write_tiny_bert, write_tiny_gguf
from tests.fakes.tiny_model import byte_alphabet, tokenizer_json
from tests.fakes.weight_files import random_tensors, write_safetensors

GGUF = {"hybrid": "qwen35", "latent": "deepseek2", "encoder": "bert"}
"""The `general.architecture` of each kind."""
KINDS = tuple(GGUF)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@frozen(eq=False)
class Folder:
    """A checkpoint that was whole, and what is in it."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def say(self, **changes: Any) -> None:
        """Another config; None takes a key away."""
        config = {key: value for key, value in {**self.config, **changes}.items() if value is not None}
        (self.path / "config.json").write_text(json.dumps(config))

    def hold(self, tensors: Mapping[str, np.ndarray]) -> None:
        write_safetensors(self.path / WEIGHTS, tensors)

    @property
    def matrices(self) -> list[str]:
        return [name for name in sorted(self.tensors) if self.tensors[name].ndim == 2]

    def shard(self) -> list[Path]:
        """The same tensors in three files with an index."""
        (self.path / WEIGHTS).unlink()
        names, where = sorted(self.tensors), {}
        files = [self.path / f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]
        for number, file in enumerate(files):
            own = names[number::3]
            write_safetensors(file, {name: self.tensors[name] for name in own})
            where |= dict.fromkeys(own, file.name)
        (self.path / INDEX).write_text(json.dumps({"weight_map": where}))
        return files


Fault = Callable[[Folder], list[str]]
GgufFault = Callable[[Path], list[str]]


def write_whole(kind: str, path: Path) -> Folder:
    """A model of `kind` that serves."""
    if kind == "encoder":
        write_tiny_bert(path)
    else:
        config = CONFIGS[GGUF[kind]] | {"split_kv_b": False}
        write_folder(path, config, random_tensors(build(config, dtype=jnp.float32)))
        (path / "tokenizer.json").write_text(tokenizer_json())
    with open_checkpoint(path) as checkpoint:
        tensors = {name: np.array(checkpoint.read(name)) for name in checkpoint.tensors}
    return Folder(path, json.loads((path / "config.json").read_text()), tensors)


def write_whole_gguf(kind: str, path: Path) -> Path:
    """The same kind in one file."""
    if kind == "encoder":
        write_tiny_gguf(path, write_tiny_bert(path.parent / "of the file"), pooling=1)
        return path
    config = CONFIGS[GGUF[kind]]
    size = config["vocab_size"]
    tokens = [*byte_alphabet(), *(f"<{number}>" for number in range(size))][: size - 1]
    header = {"model": "gpt2", "pre": "gpt-2", "tokens": [*tokens, "ab"], "merges": ["a b"], "eos_token_id": 0}
    tensors = random_tensors(build(config, dtype=jnp.float32))
    write_family_gguf(path, GGUF[kind], tensors, **{f"tokenizer.ggml.{key}": value for key, value in header.items()})
    return path


def copied(whole: Folder, path: Path) -> Folder:
    shutil.copytree(whole.path, path)
    return Folder(path, whole.config, whole.tensors)


def _content(name: str, change: Callable[[bytes], bytes], words: str) -> Fault:
    def make(folder: Folder) -> list[str]:
        file = folder.path / name
        file.write_bytes(change(file.read_bytes()))
        return [words]

    return make


def _entry(words: str, **changes: Any) -> Fault:
    """Something else in the table of the first tensor."""

    def make(folder: Folder) -> list[str]:
        file = folder.path / WEIGHTS
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        table = json.loads(content[8 : 8 + length])
        name = min(folder.tensors)
        table[name] |= changes
        head = json.dumps(table).encode()
        file.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + length :])
        return [f"{WEIGHTS}: {name} {words}"]

    return make


def _stored_as(dtype: Any, told: str) -> Fault:
    def make(folder: Folder) -> list[str]:
        name = folder.matrices[0]
        folder.hold({**folder.tensors, name: folder.tensors[name].astype(dtype)})
        return [f"{WEIGHTS}: {name} has dtype {told}; readable are F32, F16, BF16, F64"]

    return make


def _says(words: str, **changes: Any) -> Fault:
    def make(folder: Folder) -> list[str]:
        folder.say(**changes)
        return [words]

    return make


def _shard(number: int, change: Callable[[Path], Any], *words: str) -> Fault:
    def make(folder: Folder) -> list[str]:
        file = folder.shard()[number]
        change(file)
        return [f"{file.name}: {one}" for one in words]

    return make


def _two_shards_gone(folder: Folder) -> list[str]:
    files = folder.shard()[:2]
    for file in files:
        file.unlink()
    return [f"{file.name}: is not there" for file in files]


def _misfits(folder: Folder) -> list[str]:
    """All kinds of them at once."""
    first, second, *_ = folder.matrices
    gone = next(name for name in sorted(folder.tensors) if folder.tensors[name].ndim == 1)
    tensors = {name: tensor for name, tensor in folder.tensors.items() if name != gone}
    tensors |= {first: tensors[first].T[:-1].copy(), second: tensors[second][:, :-1].copy()}
    folder.hold({**tensors, "alien.weight": np.ones(2, np.float32)})
    wrong = [f"{name} is {tensors[name].shape}, must be {folder.tensors[name].shape}" for name in (first, second)]
    return [f"1 missing: {gone}", "2 of a wrong shape", *wrong, "1 unknown: alien.weight"]


def _a_layer_more(folder: Folder) -> list[str]:
    layers = folder.config["num_hidden_layers"]
    folder.say(num_hidden_layers=layers + 1, layer_types=None)
    return ["missing: ", f"layer.{layers}." if "BertModel" in folder.config["architectures"] else f"layers.{layers}."]


def _twice_as_wide(folder: Folder) -> list[str]:
    folder.say(hidden_size=2 * folder.config["hidden_size"])
    return [f"{folder.matrices[0]} is {folder.tensors[folder.matrices[0]].shape}, must be "]


HUGE = 10**15
OF_ALL: dict[str, Fault] = {
    "cut in the middle": _content(WEIGHTS, lambda content: content[: len(content) // 2], f"{WEIGHTS}: cut short: "),
    "cut in its header": _content(WEIGHTS, lambda content: content[:60], f"{WEIGHTS}: cut short: the header ends"),
    "cut by a byte": _content(WEIGHTS, lambda content: content[:-1], f"{WEIGHTS}: cut short: "),
    "empty": _content(WEIGHTS, lambda _: b"", f"{WEIGHTS}: cut short: 0 bytes"),
    "a pointer": _content(WEIGHTS, lambda _: POINTER, f"{WEIGHTS}: a Git LFS pointer in place of the file"),
    "a page": _content(WEIGHTS, lambda _: b"<!DOCTYPE html>" * 9, f"{WEIGHTS}: not a safetensors file"),
    "a negative size": _entry("has a negative size", shape=[-4]),
    "a shape beyond its bytes": _entry("(1099511627776, 1099511627776) F32 takes", shape=[2**40, 2**40]),
    "an unheard dtype": _entry("has dtype F4; known are", dtype="F4"),
    "integers": _stored_as(np.int64, "I64"),
    "float8 without scales": _stored_as(ml_dtypes.float8_e4m3fn, "F8_E4M3"),
    "a shard gone": _shard(1, Path.unlink, "is not there"),
    "two shards gone": _two_shards_gone,
    "a shard cut": _shard(1, lambda file: file.write_bytes(file.read_bytes()[:-7]), "cut short: "),
    "a shard's pointer": _shard(2, lambda file: file.write_bytes(POINTER), "a Git LFS pointer in place of the file"),
    "an index's pointer": lambda folder: [
        f"{folder.shard()[0].with_name(INDEX).write_bytes(POINTER) and INDEX}: a Git LFS pointer in place of the file"
    ],
    "a config's pointer": _content("config.json", lambda _: POINTER, "config.json: a Git LFS pointer in place"),
    "a tokenizer's pointer": _content("tokenizer.json", lambda _: POINTER, "tokenizer.json: a Git LFS pointer in"),
    "an alien": _says("found MambaVisionForCausalLM; known are", architectures=["MambaVisionForCausalLM"]),
    "none named": _says("found none named in `architectures`", architectures=None, model_type=None),
    "quantized by who knows what": _says("quant_method is 'exl9'", quantization_config={"quant_method": "exl9"}),
    "layers": _says("num_hidden_layers is 1000000000, must be", num_hidden_layers=10**9, layer_types=None),
    "width": _says(f"hidden_size is {HUGE}, must be", hidden_size=HUGE),
    "vocabulary": _says(f"vocab_size is {HUGE}, must be", vocab_size=HUGE),
    "MLP": _says(f"intermediate_size is {HUGE}, must be", intermediate_size=HUGE),
    "heads": _says("heads", num_attention_heads=36 * 10**6, num_key_value_heads=36 * 10**6),
    "positions": _says(f"max_position_embeddings is {HUGE}, must be", max_position_embeddings=HUGE),
    "misfits": _misfits,
    "a layer more": _a_layer_more,
    "twice as wide": _twice_as_wide,
}
OF_KIND: dict[str, dict[str, Fault]] = {
    "hybrid": {
        "no taps": _says("linear_conv_kernel_dim is 0, must be", linear_conv_kernel_dim=0),
        "taps": _says(f"linear_conv_kernel_dim is {HUGE}, must be", linear_conv_kernel_dim=HUGE),
        "value heads": _says("5 linear value heads do not divide among 2", linear_num_value_heads=5),
        "key heads' width": _says("in_proj_qkv.weight is ", linear_key_head_dim=10**9),
        "a layer of another kind": _says("layer_types is ['mamba3']", layer_types=["mamba3"]),
        "no layer attends": _says("self_attn.q_proj.weight", layer_types=["linear_attention"] * 4),
    },
    "latent": {
        "no latent": _says("kv_lora_rank is 0, must be", kv_lora_rank=0),
        "a latent": _says(f"kv_lora_rank is {HUGE}, must be", kv_lora_rank=HUGE),
        "another latent": _says("kv_b_proj.weight is ", kv_lora_rank=24),
        "what turns is odd": _says("must be even for rotary", qk_rope_head_dim=7),
        "experts": _says("1000000 experts are more than the 4096", n_routed_experts=10**6),
        "groups": _says("8 experts do not divide into 3 groups", n_group=3),
        "active experts": _says("99 of 8 experts cannot be active", num_experts_per_tok=99),
        "shared experts": _says("shared_experts.gate_proj.weight is ", n_shared_experts=10**7),
    },
    "encoder": {
        "types": _says("token_type_embeddings.weight is ", type_vocab_size=10**7),
        "relative positions": _says("position_embedding_type is 'relative_key'", position_embedding_type="relative_key"),
        "labels": _says("it tells 2 labels apart", architectures=["BertForSequenceClassification"], id2label={0: "a", 1: "b"}),
        "no head": _says("missing: ", architectures=["BertForSequenceClassification"], id2label={0: "a"}),
        "modules": _content("modules.json", lambda _: b"{}", "modules.json: not a list of modules"),
        "a pooling's pointer": _content("1_Pooling/config.json", lambda _: POINTER, "config.json: a Git LFS pointer in"),
        "another pooling": _content("1_Pooling/config.json", lambda _: b'{"pooling_mode_max_tokens": true}', "is max, must be"),
    },
}  # fmt: skip


def faults_of(kind: str) -> dict[str, Fault]:
    """Every fault that a folder of this kind may have, by name."""
    return OF_ALL | OF_KIND[kind]


def _bytes(change: Callable[[bytes], bytes], *words: str) -> GgufFault:
    def make(file: Path) -> list[str]:
        file.write_bytes(change(file.read_bytes()))
        return list(words)

    return make


def _renamed(content: bytes) -> bytes:
    """One tensor under another name of the same length."""
    assert content.count(b"token_embd.weight") == 1
    return content.replace(b"token_embd.weight", b"token_embx.weight")


OF_FILES: dict[str, GgufFault] = {
    "cut in its header": _bytes(lambda content: content[:900], "cut short: 900 bytes end within the header"),
    "cut by a byte": _bytes(lambda content: content[: -(len(content) // 9)], "cut short: "),
    "empty": _bytes(lambda _: b"", "cannot be read"),
    "a pointer": _bytes(lambda _: POINTER, "a Git LFS pointer in place of the file"),
    "not GGUF": _bytes(lambda content: b"GGML" + content[4:], "it starts with b'GGML', not b'GGUF'"),
    "a version": _bytes(lambda content: content[:4] + struct.pack("<I", 99) + content[8:], "version 99; readable are 2, 3"),
    "tensors": _bytes(lambda content: content[:8] + struct.pack("<Q", 2**60) + content[16:]),
    "keys": _bytes(lambda content: content[:16] + struct.pack("<Q", 2**60) + content[24:], "cut short: "),
    "a tensor gone": _bytes(_renamed, "token_embd.weight is missing"),
}  # fmt: skip
"""Every fault that a file may have, by name."""
