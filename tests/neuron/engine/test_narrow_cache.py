"""Engines whose cache is narrower than the model: the same promises as with float32, and text that is nearly the same."""

from collections.abc import Callable

import numpy as np
import pytest

from models.errors import ModelError
from neuron_jax.engine.build import design
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.runner import Runner
from neuron_jax.workers.frames import EngineSpec
from tests.fakes.engines import drain, mixed, said, serve, submit, tokens
from tests.fakes.plain_pass import full_logits
from tests.fakes.tiny_llama import CONFIG

NewEngine = Callable[..., Engine]
PROMPT = [(7 * i) % 300 for i in range(70)]


def test_however_it_is_served_each_request_gets_the_same(new_narrow_engine: NewEngine) -> None:
    """Overlapped or not, with pages for all or for few, with other chunks and company: as alone in the plain loop."""
    clients = mixed(1, count=10)
    expected = {}
    for client in clients:
        plain = new_narrow_engine(overlap=False, steps=1)
        plain.submit(client.submit)
        expected[client.submit.request] = drain(plain)[client.submit.request]

    for way in ({}, {"overlap": False}, {"pages": 9}, {"slots": 1, "steps": 1}):
        engine = new_narrow_engine(**way)
        got = serve(engine, clients)

        for client in clients:
            whole, part = expected[client.submit.request], got[client.submit.request]
            if client.leave is None:
                assert said(part) == said(whole), (way, client)
            else:
                assert tokens(part) == tokens(whole)[: len(tokens(part))], (way, client)
        assert engine.scheduler.cache.free == engine.scheduler.cache.total


def test_where_the_model_is_sure_the_text_is_that_of_float32(
    new_narrow_engine: NewEngine, narrow_runner: Runner
) -> None:
    """A clear lead of the likeliest token is more than rounding takes away."""
    engine = new_narrow_engine()
    engine.submit(submit(1, PROMPT, max_tokens=160))
    text = tokens(drain(engine)[1])
    logits = full_logits(narrow_runner.program.model, narrow_runner.params, PROMPT + text)[len(PROMPT) - 1 : -1]
    top = np.sort(logits, axis=-1)
    clear = top[:, -1] - top[:, -2] > 0.1 * (top[:, -1] - logits.mean(-1))

    assert clear.sum() > 20
    assert (logits.argmax(-1) == text)[clear].all()


def test_a_narrow_cache_holds_more_tokens_in_the_same_memory() -> None:
    """Half the bytes are twice the pages, less the scales."""
    pages = {
        kv: design(CONFIG, EngineSpec("tiny", "", kv_dtype=kv, kv_mb=1, max_slots=32), limit=2**30).plan.pages
        for kv in ("float32", "bfloat16", "int8", "fp8")
    }

    assert pages["bfloat16"] == 2 * pages["float32"]
    assert pages["int8"] == pages["fp8"] == pages["float32"] * 32 // 12  # heads of 8: 32 bytes, or 8 and a scale of 4


def test_a_format_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="kv_dtype 'fp4': allowed are auto, float32, bfloat16, int8, fp8"):
        design(CONFIG, EngineSpec("tiny", "", kv_dtype="fp4"), limit=2**30)
