"""Guesses by the model's own layer: the text is that without them, however requests are served; most of them are right here."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve
from msgspec.structs import replace

from models import mapping
from models.attend import causal
from models.registry import build
from neuron_jax.engine import build as engine_build
from neuron_jax.engine.build import Design, design, lead, load_runner, program_for
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.guesses import Guesser
from neuron_jax.engine.runner import Runner
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.place import load_params
from neuron_jax.workers.frames import EngineSpec
from tests.fakes import quick
from tests.fakes.constraints import VOCABULARY, bound
from tests.fakes.engines import ask, drain, submit, tokens, words
from tests.fakes.family_files import CONFIGS, write_folder
from tests.fakes.quick import Quick
from tests.fakes.weight_files import random_tensors
from tests.neuron.engine.test_family_trial import CLEAR, NO_KERNELS

DRAFTS = 3
SPEC = EngineSpec("m", "", max_context=256, max_slots=4, chunk_tokens=16, decode_steps=2)
OPTIONS: list[dict[str, Any]] = [{}, {"temperature": 0.8, "seed": 5, "top_p": 0.9}, {"temperature": 1.0, "seed": 7}]


def likely(family: str) -> dict[str, np.ndarray]:
    """A model whose next token is mostly decided by the one before it, as is what its layer says of the one behind."""
    tensors = random_tensors(build(CONFIGS[family], dtype=jnp.float32, draft=True), seed=3)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "experts.down_proj")):
            tensors[name] = tensor * 0.01
        elif name == "model.norm.weight" or name.startswith(("mtp.norm", "mtp.pre_fc")):
            tensors[name] = tensor * 0
    width = CONFIGS[family]["hidden_size"]
    tensors["mtp.fc.weight"] = np.concatenate([np.eye(width), np.zeros((width, width))], axis=1, dtype=np.float32)
    return tensors


@contextmanager
def running(folder: Path, spec: EngineSpec) -> Iterator[tuple[Design, Runner]]:
    with open_checkpoint(folder) as checkpoint:
        made = design(checkpoint.config, spec, limit=2**30, storage=checkpoint.storage)
        load = lambda model, mesh: load_params(model, checkpoint, mesh, lambda *_: None)
        program = program_for(made, jax.devices("cpu")[:1])
        runner = load_runner(made, program, load=load, report=lambda _: None)
        while runner.planned > len(runner.usable):
            time.sleep(0.01)
            runner.collect()
    yield made, runner
    runner.compiler.close()


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine_build, "Compiler", lambda lower, workers: Compiler(lambda key: Quick(lower(key)), workers)
    )


def small(made: Design) -> Design:
    """With pages for some of the texts at a time."""
    return evolve(made, plan=evolve(made.plan, groups=(14,)))


def served(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """All at once, each sampled in another way, the last bound by a schema; then each goes on, with what is cached of it."""
    engine.scheduler.cache.forget()
    for number, prompt in enumerate(prompts):
        engine.submit(submit(number, prompt, max_tokens=40, **OPTIONS[number % 3]))
    engine.submit(bound(len(prompts), words(20, 1), temperature=1.0, seed=5))
    outputs = drain(engine)
    texts = [tokens(outputs[number]) for number in range(len(prompts) + 1)]
    turns = [ask(engine, prompt + text + [5], max_tokens=9)[0] for prompt, text in zip(prompts, texts, strict=False)]
    return [*texts, *turns]


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        pytest.param("qwen35", "auto", marks=NO_KERNELS),
        pytest.param("qwen3next", "auto", marks=[NO_KERNELS, pytest.mark.slow]),
        pytest.param("qwen35", "xla", marks=pytest.mark.slow),
    ],
)
def test_the_text_is_that_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, attention: str) -> None:
    """Of one, of four and of more, greedy and drawn with a seed, preempted, bound, and in a second turn."""
    monkeypatch.setattr(Guesser, "expected", lambda self, count: 10.0 * count)
    folder = write_folder(tmp_path / "m", CONFIGS[family], likely(family))
    prompts = [words(length, seed=length) for length in (1, 15, 30, 47, 20)]
    texts, scheduler = {}, None
    for drafts in (0, DRAFTS):
        spec = replace(SPEC, path=str(folder), speculate=drafts, attention=attention)
        with running(folder, spec) as (made, runner):
            assert made.shapes.drafts == drafts
            engine = lead(small(made), runner)
            engine.matchers.learn(VOCABULARY)
            texts[drafts] = [served(engine, some) for some in (prompts[:1], prompts[1:4], prompts)]
            scheduler = engine.scheduler

    assert texts[DRAFTS] == texts[0]
    assert scheduler is not None
    assert scheduler.preemptions > 0
    assert 0.25 < scheduler.right_drafts / scheduler.drafted_tokens < 1


@pytest.mark.parametrize(
    "attention", [pytest.param("auto", marks=NO_KERNELS), pytest.param("xla", marks=pytest.mark.slow)]
)
def test_what_is_guessed_is_what_a_plain_pass_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attention: str
) -> None:
    """Of a prompt in chunks, in single steps and in those with guesses, right and wrong: its layer knows all tokens before."""
    monkeypatch.setattr(Guesser, "expected", lambda self, count: 10.0 * count)
    model = build(CONFIGS["qwen35"], dtype=jnp.float32, draft=True)
    tensors = random_tensors(model, seed=5)
    folder = write_folder(tmp_path / "m", CONFIGS["qwen35"], tensors)
    guessed: dict[int, int] = {}
    with running(folder, replace(SPEC, path=str(folder), speculate=1, attention=attention)) as (made, runner):
        engine = lead(made, runner)
        engine.submit(submit(1, words(40, seed=3), max_tokens=50))
        text = words(40, seed=3)
        while not engine.idle:
            text += [token for output in engine.step() for token in output.tokens]
            for request in engine.scheduler._admitted:
                known, found = request.drafted
                guessed |= {known: found[0]} if found else {}

    @quick.jit
    def plain(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0] - 1, dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens[:-1], positions, causal(), [None] * len(model.layers))
        return model.logits(params, model.draft(params, hidden, (tokens[1:], positions), causal(), None)[0])

    logits = np.asarray(plain(mapping.load(model.rules, tensors), jnp.asarray(text, jnp.int32)))
    top = np.sort(logits, axis=-1)
    clear = {known for known in guessed if top[known - 2, -1] - top[known - 2, -2] > CLEAR}
    assert len(clear) > 15
    assert all(guessed[known] == logits[known - 2].argmax() for known in clear)
