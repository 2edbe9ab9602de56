"""Each family through the engine, from its files: what it says is what one plain pass of the model says.

That the plain pass is right is shown by tests/models/test_references.py.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping, registry
from models.registry import build
from models.spec import Model
from neuron_jax.engine import build as engine_build
from neuron_jax.engine.build import lead
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.weights.checkpoint import open_checkpoint
from tests.fakes import expert_files
from tests.fakes.engines import ask, drain, submit, tokens, words
from tests.fakes.family_files import CONFIGS, write_family_gguf, write_folder, write_gemma3_with_sight
from tests.fakes.plain_pass import full_logits
from tests.fakes.quick import Quick
from tests.fakes.weight_files import random_tensors
from tests.neuron.engine.test_family_trial import CLEAR, NO_KERNELS, running

FAMILIES = list(CONFIGS)
NEW_IN_THE_ENGINE = {
    "qwen3",
    "gemma3",
    "gemma2",
    "glm4",
    "gpt-oss",
    "qwen35",
    "lfm2",
    "deepseek2",
    "gemma4",
    "qwen3next",
    "nemotron_h_moe",
    "cohere2",
    "hunyuan-dense",
}
"""Norms of heads, windows, soft caps, heads that turn in part, experts, latents, layers that share keys and values, layers
of one thing, norms behind turning: what the others have, these have as well."""


def tensors_of(family: str) -> dict[str, np.ndarray]:
    return random_tensors(build(CONFIGS[family], dtype=jnp.float32), seed=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_says_what_a_folder_says(tmp_path: Path, family: str) -> None:
    """Of the config what the family reads, and every tensor by its name."""
    stored = write_family_gguf(tmp_path / "m.gguf", family, tensors_of(family))
    read = registry.family_of(CONFIGS[family]).read
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert read(checkpoint.config) == read(CONFIGS[family])
        assert checkpoint.tensors.keys() == stored.keys()
        for name, tensor in stored.items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor, err_msg=name)


def test_the_text_of_a_gemma_that_sees(tmp_path: Path) -> None:
    """It is the model of text alone, tensor by tensor."""
    tensors = tensors_of("gemma3")
    inner = write_gemma3_with_sight(tmp_path / "seeing", tensors)
    with open_checkpoint(tmp_path / "seeing") as checkpoint:
        assert registry.read(checkpoint.config) == registry.read(CONFIGS["gemma3"]) == registry.read(inner)
        assert checkpoint.tensors.keys() == tensors.keys()


def shaken(tensors: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Each value times 1 and noise of 2^-16."""
    rng = np.random.default_rng(seed)
    return {
        name: (tensor * (1 + 2**-16 * rng.standard_normal(tensor.shape))).astype(tensor.dtype)
        for name, tensor in tensors.items()
    }


def assert_plain(engine: Engine, model: Model, tensors: dict[str, np.ndarray], *, rounded: bool = False) -> None:
    """Each token is the likeliest of the model's plain pass: in chunks, alone and among others, and with the cache warm.

    Of an engine that has `rounded` by 2^-16 what it multiplies, not where noise of that size sends a token to another expert.
    """
    params = mapping.load(model.rules, tensors)
    prompts = [words(length, seed=length) for length in (1, 40, 70)]
    for number, prompt in enumerate(prompts):
        engine.submit(submit(number, prompt, max_tokens=16))
    outputs = drain(engine)
    for number, prompt in enumerate(prompts):
        text = tokens(outputs[number])
        logits = full_logits(model, params, prompt + text)[len(prompt) - 1 : -1]
        top = np.sort(logits, axis=-1)
        sure = top[:, -1] - top[:, -2] > CLEAR
        for seed in range(2 if rounded else 0):
            noisy = mapping.load(model.rules, shaken(tensors, seed))
            noise = np.abs(full_logits(model, noisy, prompt + text)[len(prompt) - 1 : -1] - logits)
            sure &= noise.max(axis=-1) < 0.1
        assert sure.mean() > 0.8
        assert (logits.argmax(-1) == text)[sure].all()
    again, cached = ask(engine, prompts[2], max_tokens=16)
    assert cached == 64
    assert again == tokens(outputs[2])
    assert ask(engine, prompts[0], max_tokens=16)[0] == tokens(outputs[0])


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine_build, "Compiler", lambda lower, workers: Compiler(lambda key: Quick(lower(key)), workers)
    )


@NO_KERNELS
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    "family", [name if name in NEW_IN_THE_ENGINE else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_gguf_file_by_the_native_kernels(tmp_path: Path, family: str) -> None:
    """Codes stay codes, and attention is the native one."""
    stored = write_family_gguf(tmp_path / "m.gguf", family, tensors_of(family))
    with running(tmp_path / "m.gguf") as (made, runner):
        assert (made.quant, runner.program.attention.name) == ("stored", "native")
        assert_plain(lead(made, runner), build(CONFIGS[family], dtype=jnp.float32), stored, rounded=True)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    "devices",
    [pytest.param(1, marks=NO_KERNELS), pytest.param(2, marks=pytest.mark.slow)],
    ids=["native", "two devices"],
)
def test_chunks_that_do_not_see_each_other(tmp_path: Path, devices: int) -> None:
    """Llama 4's, and shorter than the prompts, which those of GGUF files are not."""
    config = CONFIGS["llama4"] | {"attention_chunk_size": 24, "floor_scale": 16, "num_experts_per_tok": 2}
    model = build(config, dtype=jnp.float32)
    tensors = random_tensors(model, seed=5)
    folder = write_folder(tmp_path / "m", config, tensors)
    with running(folder, devices=devices, quant="none") as (made, runner):
        assert_plain(lead(made, runner), model, tensors)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(("devices", "quant"), [(2, "none"), (2, "int8"), pytest.param(1, "int8", marks=NO_KERNELS)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder(tmp_path: Path, family: str, devices: int, quant: str) -> None:
    """On two devices as on one, and in int8, which rounds activations device by device, and in the kernels not at all."""
    tensors = tensors_of(family)
    folder = write_folder(tmp_path / "m", CONFIGS[family], tensors)
    with running(folder, devices=devices, quant=quant) as (made, runner):
        parts = devices if quant == "int8" else 1
        model = build(CONFIGS[family], dtype=jnp.float32, quant=quant, tensor_parallel=parts, native=devices == 1)
        assert_plain(lead(made, runner), model, tensors)


@pytest.mark.slow
@pytest.mark.usefixtures("quickly")
def test_experts_that_are_whole_on_some_devices(tmp_path: Path) -> None:
    """Two parts of two devices each, so that each expert is split as well: the text is that of one device."""
    config = expert_files.CONFIGS["glm4moe"]
    model = build(config, dtype=jnp.float32)
    tensors = random_tensors(model, seed=5)
    folder = write_folder(tmp_path / "m", config, tensors)
    with running(folder, devices=4, parts=2) as (made, runner):
        assert dict(runner.program.mesh.shape) == {"ep": 2, "tp": 2}
        assert_plain(lead(made, runner), model, tensors)
