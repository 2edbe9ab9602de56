"""Weights that files keep as several tensors: the very numbers of each format's own tools, and every way to be refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from models.attend import causal
from models.native import library
from models.registry import build
from models.sharding import computing_on, make_mesh
from models.storage import BFLOAT16, FLOAT32, Storage
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.place import load_params
from tests.fakes import expert_files, quick
from tests.fakes.weight_files import random_tensors, write_safetensors

STORED = Path(__file__).parents[2] / "data" / "stored"
GROUP = 16
NO_KERNELS = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")


def folder(path: Path, settings: Any, tensors: Mapping[str, np.ndarray], **config: Any) -> Path:
    (path / "config.json").write_text(json.dumps({"quantization_config": settings, **config}))
    write_safetensors(path / "model.safetensors", tensors)
    return path


def misfits(path: Path) -> list[str]:
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path)
    return list(caught.value.extras["misfits"])


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """[n, k] -> int32 [n, k * bits / 32], the first code in the lowest bits."""
    words = codes.astype(np.uint64).reshape(len(codes), -1, 32 // bits)
    shifted = words << (np.arange(32 // bits, dtype=np.uint64) * np.uint64(bits))
    return shifted.sum(axis=-1).astype(np.uint32).view(np.int32)


class Trial:
    """Random codes of a matrix [32, 64], and what they stand for by the formula alone."""

    def __init__(
        self, bits: int, scales: Any = np.float16, *, symmetric: bool = False, shape: tuple[int, int] = (32, 64)
    ) -> None:
        rng = np.random.default_rng(bits)
        (rows, columns), middle = shape, 1 << bits - 1
        self.bits, self.groups = bits, columns // GROUP
        self.codes = rng.integers(0, 1 << bits, shape)
        self.zeros = (
            rng.integers(1, 1 << bits, (rows, self.groups)) if not symmetric else np.full((rows, self.groups), middle)
        )
        self.scale = (rng.standard_normal((rows, self.groups)) / columns).astype(scales)
        self.index = np.arange(columns) // GROUP

    @property
    def values(self) -> np.ndarray:
        exact = (self.codes - self.zeros[:, self.index]) * self.scale.astype(np.float64)[:, self.index]
        return exact.astype(np.float32)

    def gptq(self, added: int = 1) -> dict[str, np.ndarray]:
        return {
            "m.qweight": np.ascontiguousarray(packed(self.codes, self.bits).T),
            "m.qzeros": packed(self.zeros.T - added, self.bits),
            "m.scales": np.ascontiguousarray(self.scale.T),
            "m.g_idx": self.index.astype(np.int32),
        }

    def awq(self) -> dict[str, np.ndarray]:
        places = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}[self.bits]

        def mixed(rows: np.ndarray) -> np.ndarray:
            return packed(rows.reshape(len(rows), -1, len(places))[..., places].reshape(len(rows), -1), self.bits)

        scales = np.ascontiguousarray(self.scale.T)
        return {"m.qweight": mixed(self.codes.T), "m.qzeros": mixed(self.zeros.T), "m.scales": scales}


def found_storage(path: Path, trial: Trial) -> Storage:
    """What the one matrix of a folder is stored as, its values held against the trial's."""
    with open_checkpoint(path) as checkpoint:
        (name,) = checkpoint.tensors
        tensor = checkpoint.stored(name)

        assert name == "m.weight"
        assert checkpoint.tensors[name].shape == tensor.shape == trial.values.shape
        assert (tensor.storage if hasattr(tensor, "storage") else FLOAT32) == checkpoint.storage[name]
        np.testing.assert_array_equal(checkpoint.read(name), trial.values)
        return checkpoint.storage[name]


BF16 = ml_dtypes.bfloat16
WIDTHS = [
    (4, np.float16, True, Storage(4, GROUP, offset=True, half=True)),
    (4, np.float16, False, Storage(4, GROUP, offset=True)),
    (4, BF16, True, Storage(4, GROUP, offset=True)),
    (4, np.float32, False, Storage(8, GROUP)),
    (8, np.float16, True, Storage(8, GROUP, half=True)),
    (8, BF16, False, Storage(8, GROUP, offset=True)),
    (8, np.float32, False, FLOAT32),
    (2, np.float16, False, Storage(4, GROUP, offset=True)),
]


@pytest.mark.parametrize("case", WIDTHS, ids=str)
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(tmp_path: Path, version: str, case: tuple[int, Any, bool, Storage]) -> None:
    """Both versions of its zero points, of every width, in the narrowest storage that is exact."""
    bits, scales, symmetric, storage = case
    trial = Trial(bits, scales, symmetric=symmetric)
    settings = {"quant_method": "gptq", "bits": bits, "sym": symmetric, "checkpoint_format": version}
    path = folder(tmp_path, settings, trial.gptq(added=1 if version == "gptq" else 0))

    assert found_storage(path, trial) == storage


@pytest.mark.parametrize("case", WIDTHS[:-1], ids=str)
def test_awq(tmp_path: Path, case: tuple[int, Any, bool, Storage]) -> None:
    """Its order of rows within a word."""
    bits, scales, symmetric, storage = case
    trial = Trial(bits, scales, symmetric=symmetric)
    path = folder(tmp_path, {"quant_method": "awq", "bits": bits, "zero_point": not symmetric}, trial.awq())

    assert found_storage(path, trial) == storage


def test_groups_in_another_order_are_widened(tmp_path: Path) -> None:
    """Columns that act-order has strewn keep their scales, as float32."""
    trial = Trial(4)
    np.random.default_rng(0).shuffle(trial.index)
    path = folder(tmp_path, {"quant_method": "gptq", "bits": 4, "sym": False, "desc_act": True}, trial.gptq())

    assert found_storage(path, trial) == FLOAT32


def test_what_calls_itself_symmetric_and_is_not_is_told(tmp_path: Path) -> None:
    """The narrower storage that was promised cannot hold it."""
    trial = Trial(8)
    path = folder(tmp_path, {"quant_method": "gptq", "bits": 8, "sym": True}, trial.gptq())
    told = pytest.raises(WeightsError, match="m has zero points other than 128")
    with open_checkpoint(path) as checkpoint, told:
        checkpoint.stored("m.weight")


@pytest.mark.parametrize("name", ["compressed", "fp8", "mxfp4"])
def test_the_tools_of_a_format_agree(tmp_path: Path, name: str) -> None:
    """Bit for bit what its own library makes of the same bytes (tests/data/README.md), tensor by tensor."""
    cases = sorted(STORED.glob(f"{name}-*.safetensors"))
    for case in cases:
        target = tmp_path / case.stem
        target.mkdir()
        (target / "model.safetensors").write_bytes(case.read_bytes())
        (target / "config.json").write_bytes(case.with_suffix(".json").read_bytes())
        with np.load(case.with_suffix(".npz")) as expected, open_checkpoint(target) as checkpoint:
            assert set(checkpoint.tensors) == set(expected), case.name
            for key in expected:
                np.testing.assert_array_equal(checkpoint.read(key), expected[key], err_msg=f"{case.name} {key}")
    assert cases


BLOCKS = {"quant_method": "fp8", "weight_block_size": [8, 16]}


def test_blocks_that_a_matrix_does_not_fill(tmp_path: Path) -> None:
    """The last scales of rows and columns are for less than a block."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((13, 40)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.random((2, 3)).astype(np.float32)
    path = folder(tmp_path, BLOCKS, {"m.weight": weight, "m.weight_scale_inv": scale, "m.input_scale": scale[0, 0]})
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.stored("m.weight")

        assert set(checkpoint.tensors) == {"m.weight"}
    expected = weight.astype(np.float32) * np.repeat(np.repeat(scale, 8, 0), 16, 1)[:13, :40]
    np.testing.assert_array_equal(found, expected)


def test_scales_that_are_powers_of_two_leave_bfloat16(tmp_path: Path) -> None:
    """A float8 has four bits: times a power of two it is exact there."""
    weight = np.random.default_rng(0).standard_normal((8, 16)).astype(ml_dtypes.float8_e4m3fn)
    path = folder(tmp_path, BLOCKS, {"m.weight": weight, "m.weight_scale_inv": np.full((1, 1), 120, np.uint8)})
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.stored("m.weight")

        assert checkpoint.storage["m.weight"] == BFLOAT16
    np.testing.assert_array_equal(found.astype(np.float32), weight.astype(np.float32) / 128)


PLAIN = {"m.weight": np.zeros((8, 32), np.int8)}
GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}
COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": GROUPS}


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        (4, PLAIN, "quantization_config is 4, must be an object"),
        ({"quant_method": "bitsandbytes"}, PLAIN, "quant_method is 'bitsandbytes'; readable are awq, compressed-tensors"),
        ({"quant_method": "gptq", "bits": 3}, PLAIN, "bits is 3, must be 2, 4 or 8"),
        ({"quant_method": "awq", "version": "gemv"}, PLAIN, "version is 'gemv', must be 'gemm'"),
        (COMPRESSED | {"format": "nvfp4-pack-quantized"}, PLAIN, "format is 'nvfp4-pack-quantized', must be 'dense'"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24-bitmask"}}, PLAIN, "must be 'dense'"),
        (COMPRESSED, PLAIN, "m.weight_scale (8, 1) is missing"),
        (COMPRESSED, PLAIN | {"m.weight_scale": np.zeros((3, 1), np.float32)}, "m.weight_scale is F32 (3, 1)"),
        ({"quant_method": "fp8"}, {"m.weight": np.zeros((2, 2), ml_dtypes.float8_e4m3fn)}, "m.weight_scale_inv is missing"),
        ({"quant_method": "fp8"}, PLAIN, "m.weight has dtype I8; readable are F32"),
        ({"quant_method": "mxfp4"}, {"m_blocks": np.zeros((2, 1, 16), np.uint8)}, "m_scales (2, 1) is missing"),
        (BLOCKS, {"m.weight": np.zeros((8, 16), ml_dtypes.float8_e4m3fn), "m.weight_scale": np.zeros((2, 1), np.float32)},
         "m.weight (8, 16) has scales (2, 1), must be (1, 1)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, settings: Any, tensors: dict[str, np.ndarray], message: str
) -> None:
    """Formats, versions, and tensors that do not belong together."""
    assert any(message in row for row in misfits(folder(tmp_path, settings, tensors)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m.scales": np.zeros((4, 32), np.int32)}, "m.scales is I32 (4, 32), must be F16 or BF16 or F32 (4, 32)"),
        ({"m.qzeros": np.zeros((4, 4), np.int64)}, "m.qzeros is I64 (4, 4), must be I32 (4, 4)"),
        ({"m.qzeros": np.zeros((4, 3), np.int32)}, "m.qzeros is I32 (4, 3), must be I32 (4, 4)"),
        ({"m.g_idx": np.full(64, 4, np.int32)}, "m.g_idx names groups 4 to 4 of 4"),
        ({"m.g_idx": np.zeros(63, np.int32)}, "m.g_idx is int32 (63,), must be int32 (64,)"),
        (
            {"m.scales": np.zeros((40, 32), np.float16), "m.qzeros": np.zeros((40, 4), np.int32)},
            "m has 40 groups for 64 columns",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_told(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    """Dtypes and shapes, and groups that are not there."""
    path = folder(tmp_path, {"quant_method": "gptq", "bits": 4, "sym": False}, Trial(4).gptq() | changes)

    assert misfits(path) == [message]


def test_all_misfits_of_all_matrices_are_one_error(tmp_path: Path) -> None:
    """Every matrix that lacks a part."""
    tensors = {f"{n}.qweight": np.zeros((4, 8), np.int32) for n in range(3)}

    assert len(misfits(folder(tmp_path, {"quant_method": "gptq", "bits": 4}, tensors))) == 3


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 31,
    "max_position_embeddings": 64,
}


@NO_KERNELS
def test_a_model_of_such_weights_computes_with_their_values(tmp_path: Path) -> None:
    """GPTQ of 4 bits through the native kernels, with the biases of zeros that its tools write, is the float model."""
    plain = random_tensors(build(LLAMA, dtype=jnp.float32))
    files = dict(plain)
    for stem in [name.removesuffix(".weight") for name in plain if "proj" in name]:
        trial = Trial(4, shape=plain[f"{stem}.weight"].shape)
        plain[f"{stem}.weight"] = trial.values
        del files[f"{stem}.weight"]
        files |= {name.replace("m.", f"{stem}."): tensor for name, tensor in trial.gptq().items()}
        files[f"{stem}.bias"] = np.zeros(len(trial.values), np.float16)
    (tmp_path / "q").mkdir()
    (tmp_path / "f").mkdir()
    gptq = folder(tmp_path / "q", {"quant_method": "gptq", "bits": 4, "sym": False}, files, **LLAMA)
    floats = folder(tmp_path / "f", None, plain, **LLAMA)

    expected = logits(floats, native=False)
    np.testing.assert_allclose(logits(gptq, native=True), expected, rtol=0, atol=ROUNDED * np.abs(expected).max())


ROUNDED = 10 * 2**-16
"""How far logits may be off, of the largest: some ten products with codes in a row, each of which rounds what it has by
2^-16 of a block's largest.
"""

FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What the codes of MXFP4 stand for, by the table of its specification."""


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=NO_KERNELS)], ids=["xla", "native"])
def test_gpt_oss_computes_with_its_experts_as_released(tmp_path: Path, *, native: bool) -> None:
    """Blocks of 4 bits and exponents, in the names and the layout of its files, are the float model."""
    released, floats = gpt_oss(tmp_path)

    expected = logits(floats, native=False)
    atol = ROUNDED * np.abs(expected).max() if native else 1e-4
    np.testing.assert_allclose(logits(released, native=native), expected, rtol=1e-4, atol=atol)


def test_gpt_oss_as_released_spreads_its_experts_over_devices(tmp_path: Path) -> None:
    """Two whole ones on each of two devices, one on each of four."""
    released, _ = gpt_oss(tmp_path, num_local_experts=4)
    expected = logits(released, native=False)

    for parts in (2, 4):
        found = logits(released, native=False, parts=parts)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        assert np.array_equal(found.argmax(-1), expected.argmax(-1))


def test_gpt_oss_keeps_its_experts_as_released(tmp_path: Path) -> None:
    """Half a byte a weight and a byte a group, and the very logits of the widened ones: on one device, on some that have
    parts of every expert, of a width that they do not divide, or whole experts."""
    released, _ = gpt_oss(tmp_path, num_local_experts=4, intermediate_size=96)
    expected = logits(released, native=False)
    with open_checkpoint(released) as checkpoint:
        plain, kept = (
            build(checkpoint.config, quant=quant, storage=checkpoint.storage, dtype=jnp.float32)
            for quant in ("none", "stored")
        )
    bytes_ = [
        sum(
            leaf.nbytes
            for name in ("gate_up", "down")
            for part, leaf in model.param_specs["layers"][0]["mlp"]["experts"][name].items()
            if part != "bias"
        )
        for model in (plain, kept)
    ]

    assert bytes_[1] == bytes_[0] // 32 * 17 // 4
    for devices, parts in ((1, 1), (2, 1), (4, 1), (4, 2), (4, 4)):
        found = logits(released, native=False, parts=parts, devices=devices, quant="stored")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def gpt_oss(path: Path, **changes: Any) -> tuple[Path, Path]:
    """A checkpoint whose experts are stored in MXFP4, and the same values in floats."""
    config = expert_files.CONFIGS["gpt-oss"] | changes
    plain = random_tensors(build(config, dtype=jnp.float32))
    files, rng = dict(plain), np.random.default_rng(0)
    for name in [name for name in plain if name.endswith(("down_proj", "gate_up_proj"))]:
        experts, columns, rows = plain[name].shape
        packed = rng.integers(0, 256, (experts, rows, columns // 32, 16), np.uint8)
        exponents = rng.integers(122, 126, packed.shape[:-1], np.uint8)
        codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(experts, rows, columns // 32, 32)
        values = FOUR_BITS[codes] * 2.0 ** (exponents.astype(np.float32)[..., None] - 127)
        plain[name] = values.reshape(experts, rows, columns).swapaxes(1, 2).astype(np.float32)
        del files[name]
        files |= {f"{name}_blocks": packed, f"{name}_scales": exponents}
    (path / "q").mkdir()
    (path / "f").mkdir()
    released = folder(path / "q", {"quant_method": "mxfp4"}, files, **config)
    return released, folder(path / "f", None, plain, **config)


def logits(
    path: Path, *, native: bool, parts: int = 1, devices: int | None = None, quant: str | None = None
) -> np.ndarray:
    """With the experts in so many parts, and all else, on so many devices."""
    devices = devices or parts
    mesh = make_mesh(jax.devices("cpu")[:devices], parts)
    spread = {"tensor_parallel": devices, "expert_parallel": parts, "native": native, "dtype": jnp.float32}
    with open_checkpoint(path) as checkpoint:
        quant = quant or ("stored" if native else "none")
        model = build(checkpoint.config, quant=quant, storage=checkpoint.storage, **spread)
        params = load_params(model, checkpoint, mesh, lambda *_: None)
    tokens = jnp.arange(1, 6, dtype=jnp.int32)

    @quick.jit
    def run(params: Any) -> jax.Array:
        with computing_on(mesh):
            positions = jnp.arange(5, dtype=jnp.int32)
            hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
            return model.logits(params, hidden)

    return np.asarray(run(params))
