"""A model whose layers all have a window, by the native kernels: the same bits, however a request is served."""

from pathlib import Path

import jax
import pytest

from models.native import library
from neuron_jax.engine.build import assemble, design
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.place import load_params
from neuron_jax.workers.frames import EngineSpec
from tests.fakes.tiny_llama import write_checkpoint
from tests.neuron.engine.test_determinism import Ticks, answers, request

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")


def test_windows_by_the_native_kernels(tmp_path: Path) -> None:
    """Alone, among others, with the cache cold and warm, and preempted: pages that the window has left are others' by then."""
    changes = {"architectures": ["MistralForCausalLM"], "sliding_window": 40, "hidden_size": 64}
    folder = write_checkpoint(tmp_path / "tiny", intermediate_size=96, **changes)
    wanted = EngineSpec("tiny", str(folder), max_slots=4, chunk_tokens=16, decode_steps=1)
    with open_checkpoint(folder) as checkpoint:
        made = design(checkpoint.config, wanted, limit=2**30, storage=checkpoint.storage)
        load = lambda model, mesh: load_params(model, checkpoint, mesh, lambda *_: None)
        first = assemble(made, devices=jax.devices("cpu")[:1], load=load, report=lambda _: None)
    assert first.runner.program.attention.name == "native"

    def engine(pages: int = 40, *, prefix: bool = True) -> Engine:
        old = first.scheduler.cache
        naming = old.naming if prefix else None
        cache = Cache([Pages(pages)], old.page_size, naming, old.windows, old.step_tokens)
        scheduler = Scheduler(cache, max_slots=4, menu=first.scheduler.menu, pace=first.scheduler.pace)
        return Engine(scheduler, first.runner, first.max_context, clock=Ticks())

    requests = [request(seed, temperature=0.9) for seed in range(1, 9)]
    alone = {}
    for one in requests:
        alone |= answers(engine(prefix=False), [one])
    tight, warm = engine(pages=9), engine()

    assert answers(engine(prefix=False), requests) == alone
    assert answers(warm, requests[:3]) == {number: alone[number] for number in (1, 2, 3)}
    assert answers(warm, requests[:3]) == {number: alone[number] for number in (1, 2, 3)}
    assert warm.scheduler.cache.hit_tokens > 0
    assert answers(tight, requests) == alone
    first.runner.compiler.close()
