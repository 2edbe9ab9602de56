"""A trial in a process of its own: what it finds, what is remembered of it, and what becomes of a process that ends badly."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from attrs import evolve

from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine.attention import apart
from neuron_jax.engine.attention.apart import asked_for, asking, tried_apart
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case

LAYER = PagedLayer(kv_heads=4, group=2, k_width=16, v_width=16, window=20, soft_cap=2.0, sinks=True)


def case(devices: int = 1) -> Case:
    return Case(make_mesh(jax.devices("cpu")[:devices]), jnp.bfloat16, KVFormat("int8"), 40, 16, (LAYER,))


def says(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(apart, "COMMAND", (sys.executable, "-c", program))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield tmp_path / "attention"
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_case_goes_over_and_is_tried_for_the_heads_of_one_device() -> None:
    name, there = asked_for(asking("pallas", case(devices=2)))

    assert name == "pallas"
    assert there.layers == (evolve(LAYER, kv_heads=2),)
    assert (there.mesh.size, there.dtype, there.kv.name, there.pages, there.page_size) == (
        1,
        jnp.bfloat16,
        "int8",
        40,
        16,
    )


def test_the_process_tries_what_it_is_asked() -> None:
    """A CPU has no kernel of a GPU's: JAX says so over there."""
    assert "Only interpret mode is supported on CPU backend" in str(tried_apart("pallas", case()))


def test_a_process_that_dies_is_a_reason_and_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "import os, sys; print('CUDA_ERROR_ILLEGAL_ADDRESS', file=sys.stderr, flush=True); os.abort()")

    assert tried_apart("pallas", case()) == "the process that tried it ended with -6: CUDA_ERROR_ILLEGAL_ADDRESS"
    assert not folder.exists()


def test_a_process_that_hangs_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SECONDS", 0.2)
    says(monkeypatch, "import time; time.sleep(60)")

    assert tried_apart("pallas", case()) == "its trial took more than 0 s"


@pytest.mark.parametrize("why", [None, "differs from the reference by 0.5 of its largest value"])
def test_a_verdict_is_remembered(why: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the same layer, formats, driver, card and JAX, with however many pages."""
    says(monkeypatch, f"print({json.dumps({'why': why, 'final': True})!r})")
    assert tried_apart("pallas", case()) == why
    says(monkeypatch, "raise SystemExit(3)")

    assert tried_apart("pallas", evolve(case(), pages=80)) == why
    assert len(list(folder.iterdir())) == 1
    assert "ended with 3" in str(tried_apart("pallas", evolve(case(), page_size=32)))


def test_what_may_be_otherwise_tomorrow_is_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, f"print({json.dumps({'why': 'RESOURCE_EXHAUSTED', 'final': False})!r})")

    assert tried_apart("pallas", case()) == "RESOURCE_EXHAUSTED"
    assert not folder.exists()
