"""`deterministic = true` where XLA computes: the same bits however a request is served, in every mode a CPU has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from models.native import library
from models.registry import build as build_model
from neuron_jax.engine import build, proof
from neuron_jax.engine.attention.kv import choose_kv
from neuron_jax.engine.build import assemble, design
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.proof import NotDeterministicError, prove
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.place import load_params
from neuron_jax.workers.frames import EngineSpec, Sampling, Submit
from tests.fakes import quick
from tests.fakes.expert_files import CONFIGS
from tests.fakes.family_files import write_folder
from tests.fakes.params import slow_but
from tests.fakes.tiny_llama import CONFIG, write_checkpoint
from tests.fakes.weight_files import random_tensors
from tests.neuron.engine.test_determinism import Ticks, answers

SLOTS = 12
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"quant": "int8"},
    "int4, int8 cache": {"quant": "int4", "kv_dtype": "int8"},
    "two devices": {"tensor_parallel": 2, "devices": (0, 1)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), hidden_size=64, intermediate_size=96)


@pytest.fixture(autouse=True)
def as_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits are those of the code that is served."""
    monkeypatch.setattr(build, "Compiler", lambda lower, workers: Compiler(quick.served(lower), workers))


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "unavailable", lambda: "not in this test")
    monkeypatch.setattr(build.native_sampler, "refuses", lambda mesh: f"not in this test, {mesh.size} device")
    monkeypatch.setattr("neuron_jax.engine.attention.native.unavailable", lambda: "not in this test")


def served(folder: Path, **spec: Any) -> Engine:
    """An engine of the tiny model, and all of its programs."""
    wanted = EngineSpec("tiny", str(folder), max_slots=SLOTS, kv_mb=1, chunk_tokens=16, decode_steps=1, **spec)
    with open_checkpoint(folder) as checkpoint:
        made = design(checkpoint.config, wanted, limit=2**30, storage=checkpoint.storage)
        devices = jax.devices("cpu")[: wanted.tensor_parallel]
        load = lambda model, mesh: load_params(model, checkpoint, mesh, lambda *_: None)
        engine = assemble(made, devices=devices, load=load, report=lambda _: None)
    compiler = engine.runner.compiler
    compiler.wait(list(compiler._pending), lambda done, total: None)
    engine.scheduler.menu.add(engine.runner.sizes(compiler.ready))
    return engine


def again(engine: Engine, *, pages: int = 0, overlap: bool = True, prefix: bool = True) -> Engine:
    """An engine with the same programs and another pool."""
    old = engine.scheduler
    scheduler = Scheduler(
        Cache([Pages(pages or old.cache.total)], old.cache.page_size, old.cache.naming if prefix else None),
        max_slots=old.max_slots,
        menu=old.menu,
        pace=old.pace,
    )
    return Engine(scheduler, engine.runner, engine.max_context, clock=Ticks(), overlap=overlap)


def requests() -> Iterator[Submit]:
    """Prompts of 20 to 59 tokens, two of which begin alike; greedy, drawn, and with penalties."""
    kinds = ({"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.95}, {"temperature": 0.8, "presence_penalty": 0.5})
    for number in range(1, SLOTS + 1):
        prompt = [(number // 2 * 37 + i * 11) % 300 for i in range(16 + 3 * number)] + [number] * 4
        yield Submit(number, prompt, Sampling(seed=number, logprobs=2, **kinds[number % 3]), 12)


def ways(engine: Engine) -> dict[str, dict[int, Any]]:
    """What all requests get, by how they are served."""
    every = list(requests())
    alone: dict[int, Any] = {}
    for one in every:
        alone |= answers(again(engine, prefix=False, overlap=False), [one])
    warm = again(engine)
    return {
        "alone": alone,
        "all at once": answers(again(engine, prefix=False), every),
        "in the other order": answers(again(engine, prefix=False), every[::-1]),
        "with the cache cold": answers(warm, every[:6]),
        "with the cache warm": answers(warm, every[:6]),
        "in a pool too small for all": answers(again(engine, pages=14), every),
    }


def experts(tmp_path: Path) -> Path:
    model = build_model(CONFIGS["qwen3moe"], dtype=np.float32)
    return write_folder(tmp_path / "experts", CONFIGS["qwen3moe"], random_tensors(model, seed=5))


@pytest.mark.slow
@pytest.mark.usefixtures("no_kernels")
def test_experts_give_the_same_bits_by_xla(tmp_path: Path) -> None:
    """Which tokens share a block of an expert's is not seen in them."""
    assert_alike(served(experts(tmp_path), deterministic=True))


@pytest.mark.slow
@pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")
def test_experts_give_the_same_bits_by_the_kernels(tmp_path: Path) -> None:
    """In steps of any size."""
    engine = served(experts(tmp_path), speculate=0)

    assert len(engine.scheduler.menu.tokens) > 1
    assert_alike(engine)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("mode", slow_but(["float32"], MODES))
def test_it_gives_the_same_bits_however_a_request_is_served(mode: str, folder: Path) -> None:
    engine = served(folder, deterministic=True, **MODES[mode])
    assert_alike(engine)

    assert engine.scheduler.menu.tokens == [SLOTS]


def assert_alike(engine: Engine) -> None:
    """The same bits however it is served."""
    found = ways(engine)
    engine.runner.compiler.close()
    for way, given in found.items():
        for number, answer in given.items():
            assert answer == found["alone"][number], f"{way}: request {number}"


@pytest.mark.slow
@pytest.mark.usefixtures("no_kernels")
def test_pages_of_another_size_change_nothing(folder: Path) -> None:
    found = []
    for size in (16, 64):
        engine = served(folder, deterministic=True, page_size=size)
        found.append(answers(again(engine), list(requests())))
        engine.runner.compiler.close()

    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.usefixtures("no_kernels")
def test_without_it_the_bits_depend_on_the_company(folder: Path) -> None:
    engine = served(folder)
    found = ways(engine)
    engine.runner.compiler.close()

    assert found["all at once"] != found["alone"]


@pytest.mark.usefixtures("no_kernels")
def test_a_device_that_does_not_keep_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served(folder, deterministic=True)
    fetch = type(engine.runner).fetch

    def swayed(runner: Any, step: Any, result: Any) -> Any:
        """The last bit of the first row depends on how many are beside it."""
        drawn = fetch(runner, step, result)
        drawn.logprobs[0] = drawn.logprobs[0] ^ (len(step.rows) & 1)
        return drawn

    monkeypatch.setattr(proof.Runner, "fetch", swayed)
    with pytest.raises(NotDeterministicError, match="max_slots = 1"):
        prove(engine.runner, SLOTS)
    engine.runner.compiler.close()


@pytest.mark.skipif(library.unavailable() is not None, reason="no kernels")
def test_where_the_native_kernels_compute_nothing_changes() -> None:
    head = {"hidden_size": 64}  # heads of 16, which the kernels want
    plain, asked = (
        design(CONFIG | head, EngineSpec("tiny", "", deterministic=flag), limit=2**30) for flag in (False, True)
    )

    assert plain.buckets == asked.buckets
    assert (plain.deterministic, asked.deterministic) == (True, True)
    narrow = design(CONFIG | head, EngineSpec("tiny", "", kv_dtype="int8"), limit=2**30)
    assert (narrow.deterministic, narrow.deterministic_reason) == (
        False,
        "not asked for: XLA's sums depend on the size of a step",
    )
    assert choose_kv("int8", "cpu")[0].name == narrow.kv.name
