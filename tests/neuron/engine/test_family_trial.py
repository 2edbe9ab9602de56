"""A made-up family through the engine, from files: what it says is what a plain numpy pass of its tensors says."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from models import registry
from models.native import library
from neuron_jax.engine import build
from neuron_jax.engine.build import Design, design, lead, load_runner, program_for
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.runner import Runner
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.describe import describe
from neuron_jax.weights.place import load_params
from neuron_jax.workers.frames import EngineSpec
from tests.fakes import trial_forward
from tests.fakes.engines import ask, drain, submit, tokens, words
from tests.fakes.quick import Quick
from tests.fakes.tiny_model import tokenizer_json
from tests.fakes.trial_files import CONFIG, random_trial, write_trial_gguf, write_wrapped
from tests.neuron.engine.test_determinism import answers, request

NO_KERNELS = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")
CLEAR = 2e-3
"""Of the likeliest token before the next one: what rounding to float32 does not turn around."""


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, "tests.fakes.family_trial"])


@contextmanager
def running(path: Path, *, devices: int = 1, parts: int = 1, quant: str = "auto") -> Iterator[tuple[Design, Runner]]:
    """As an engine process builds it."""
    spec = EngineSpec(
        "trial",
        str(path),
        tensor_parallel=devices,
        expert_parallel=parts,
        quant=quant,
        max_context=256,
        max_slots=4,
        chunk_tokens=16,
        decode_steps=1,
        speculate=0,
    )
    with open_checkpoint(path) as checkpoint:
        made = design(checkpoint.config, spec, limit=2**30, storage=checkpoint.storage)
        load = lambda model, mesh: load_params(model, checkpoint, mesh, lambda *_: None)
        program = program_for(made, jax.devices("cpu")[:devices])
        runner = load_runner(made, program, load=load, report=lambda _: None)
    yield made, runner
    runner.compiler.close()


def assert_plain(made: Design, runner: Runner, config: dict[str, object], tensors: dict[str, np.ndarray]) -> None:
    """Each token is the likeliest of the plain pass; in chunks, among others, and again with the cache warm."""
    engine = lead(made, runner)
    prompts = [words(length, seed=length) for length in (1, 40, 70)]
    for number, prompt in enumerate(prompts):
        engine.submit(submit(number, prompt, max_tokens=16))
    outputs = drain(engine)
    for number, prompt in enumerate(prompts):
        text = tokens(outputs[number])
        logits = trial_forward.logits(config, tensors, prompt + text)[len(prompt) - 1 : -1]
        top = np.sort(logits, axis=-1)
        clear = top[:, -1] - top[:, -2] > CLEAR
        assert clear.mean() > 0.8
        assert (logits.argmax(-1) == text)[clear].all()
    again, cached = ask(engine, prompts[2], max_tokens=16)
    assert cached == 64
    assert again == tokens(outputs[2])


@pytest.mark.parametrize(
    "devices",
    [pytest.param(1, marks=NO_KERNELS), pytest.param(2, marks=pytest.mark.slow)],
    ids=["native", "two devices"],
)
def test_the_text_part_of_a_larger_model(tmp_path: Path, devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All options: by the native kernels on one device, by XLA on two. Alone and among others it is the same bits."""
    quickly = lambda lower, workers: Compiler(lambda key: Quick(lower(key)), workers)
    monkeypatch.setattr(build, "Compiler", quickly)
    tensors = random_trial(CONFIG)
    with running(write_wrapped(tmp_path / "seeing", CONFIG, tensors), devices=devices) as (made, runner):
        assert runner.program.attention.name == ("native" if devices == 1 else "xla")
        assert_plain(made, runner, CONFIG, tensors)
        if devices == 1:
            assert_the_same_bits(made, runner)


def assert_the_same_bits(made: Design, runner: Runner) -> None:
    requests = [request(seed, temperature=0.9) for seed in range(1, 9)]
    alone = [answers(lead(made, runner), [one]) for one in requests]
    assert answers(lead(made, runner), requests) == {number: one[number] for number, one in enumerate(alone, 1)}


@NO_KERNELS
def test_a_gguf_file_by_the_native_kernels(tmp_path: Path) -> None:
    """Codes stay codes. The promise of the same bits alone and among others holds for what XLA computes between the
    kernels, too."""
    stored = write_trial_gguf(tmp_path / "trial.gguf", CONFIG, random_trial(CONFIG))
    with running(tmp_path / "trial.gguf") as (made, runner):
        assert (made.quant, runner.program.attention.name) == ("stored", "native")
        assert_plain(made, runner, CONFIG, stored)
        assert_the_same_bits(made, runner)


def test_a_gguf_file_says_what_a_folder_says(tmp_path: Path) -> None:
    """Every option, and every tensor with its values."""
    tensors = random_trial(CONFIG)
    stored = write_trial_gguf(tmp_path / "trial.gguf", CONFIG, tensors)
    family = registry.family_of(CONFIG)
    with open_checkpoint(tmp_path / "trial.gguf") as checkpoint:
        assert family.read(checkpoint.config) == family.read(CONFIG)
        assert checkpoint.tensors.keys() == tensors.keys()
        for name in tensors:
            np.testing.assert_array_equal(checkpoint.read(name), stored[name], err_msg=name)


def test_a_larger_model_is_described_by_its_text_part(tmp_path: Path) -> None:
    """Its parameters are those that are served, and a wrong value within is told."""
    tensors = random_trial(CONFIG)
    folder = write_wrapped(tmp_path / "seeing", CONFIG, tensors)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    found = describe(folder)

    assert found.parameters == sum(tensor.size for tensor in tensors.values())
    assert found.context_length == 512
    assert [getattr(layer, "window", None) for layer in found.outline.layers] == [20, None, None]
