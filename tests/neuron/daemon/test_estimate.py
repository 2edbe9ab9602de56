"""The estimate before loading against the memory plan of the engine, which it bounds from below."""

from pathlib import Path
from typing import Literal

import pytest

from neuron_jax.daemon.estimate import least_bytes
from neuron_jax.engine.build import design
from neuron_jax.weights.describe import describe
from neuron_jax.workers.frames import EngineSpec
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.tiny_model import tokenizer_json


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize(("context", "kv_dtype"), [(0, "auto"), (96, "auto"), (96, "bfloat16"), (96, "int8")])
def test_it_is_the_plan_s_weights_and_least_pages(
    platform: Literal["cpu", "cuda"], context: int, kv_dtype: str, tmp_path: Path
) -> None:
    """But for the norms, which stay float32 on a GPU, and for the tiles of a CPU, which such small matrices do not fill."""
    folder = write_checkpoint(tmp_path / "tiny")
    (folder / "tokenizer.json").write_text(tokenizer_json())
    described = describe(folder)
    spec = EngineSpec(
        "tiny", str(folder), platform=platform, kv_dtype=kv_dtype, max_context=context, kv_mb=1, max_slots=1
    )
    least = least_bytes(described, platform=platform, quant="auto", kv_dtype=kv_dtype, max_context=context)
    rows = {row.what: row.bytes for row in design(described.config, spec, limit=2**33).plan.rows}
    pool = next((what, size) for what, size in rows.items() if what.startswith("KV"))
    pages = int(pool[0].split("(")[1].split()[0])
    tokens = min(context or 256, described.context_length)

    assert tokens % spec.page_size == 0
    planned = rows["weights"] + pool[1] // pages * tokens // spec.page_size
    assert (0.99 if platform == "cuda" else 0.9) * planned < least <= planned
    assert least_bytes(described, platform=platform, quant="int8", kv_dtype=kv_dtype, max_context=context) < least
    assert least < rows["total"]
