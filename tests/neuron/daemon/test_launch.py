"""What is read of an engine's memory plan, and what an engine that ran out of memory begins again with."""

from pathlib import Path

import pytest

from neuron_jax.config import CacheConfig, EngineConfig, ModelSpec, NeuronConfig
from neuron_jax.daemon.launch import KV_ROW, TOTAL_ROW, engine_spec, row_mb, shrunk
from neuron_jax.workers.frames import EngineSpec, MemoryRow

MIB = 1 << 20
PLAN = (
    MemoryRow("weights", 10 * MIB),
    MemoryRow("KV pages (64 of 16 tokens)", 6 * MIB),
    MemoryRow("KV pages of layers that see 128 tokens (17 of 16 tokens)", MIB + 1),
    MemoryRow("total", 18 * MIB),
)


def test_pages_of_all_groups_of_layers_are_the_pool() -> None:
    """Rounded up as a whole."""
    assert row_mb(PLAN, KV_ROW) == 8
    assert row_mb(PLAN, TOTAL_ROW) == 18
    assert row_mb((), KV_ROW) == 0


@pytest.mark.parametrize(("asked", "found"), [(None, (256, 4)), (0, (256, 0)), (-1, (256, -1))])
def test_a_request_goes_over_the_configuration(asked: int | None, found: tuple[int, int], tmp_path: Path) -> None:
    """None said: as [engine] has it. 0 is said."""
    config = NeuronConfig(
        cache=CacheConfig(models_dir=tmp_path, compile_dir=tmp_path), engine=EngineConfig(max_context=256, speculate=4)
    )
    spec = ModelSpec(model_id="tiny", speculate=asked)

    made = engine_spec(config, spec, "cpu", (0,), tmp_path)

    assert (made.max_context, made.speculate) == found


def test_an_engine_begins_again_with_less() -> None:
    """Of its pool where it had planned one, else of the whole; a fifth less each time."""
    spec = EngineSpec("tiny", "", memory_mb=1000)

    assert shrunk(spec, 100, 0) == (spec, "")
    assert shrunk(spec, 100, 2)[0].kv_mb == 64
    assert shrunk(spec, 0, 1)[0].memory_mb == 800
