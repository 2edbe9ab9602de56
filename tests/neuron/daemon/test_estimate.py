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


@pytest.mark.parametrize("window", [32, 4000])
def test_a_window_bounds_what_is_kept(window: int, tmp_path: Path) -> None:
    """The plan has pages for windows alone, and the estimate stays below it."""
    folder = write_checkpoint(tmp_path / "tiny", architectures=["MistralForCausalLM"], sliding_window=window)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    described = describe(folder)
    spec = EngineSpec("tiny", str(folder), max_context=512, max_slots=1, chunk_tokens=16)
    plan = design(described.config, spec, limit=2**33).plan
    found = [
        least_bytes(described, platform="cpu", quant="auto", kv_dtype="auto", max_context=context)
        for context in (16, 512)
    ]
    token = described.config["num_hidden_layers"] * 2 * described.config["num_key_value_heads"] * 4
    token *= (
        described.config.get("head_dim") or described.config["hidden_size"] // described.config["num_attention_heads"]
    )

    assert found[1] - found[0] == (min(window, 512) - 16) * token
    assert found[1] < sum(row.bytes for row in plan.rows if row.what == "weights" or row.what.startswith("KV"))


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
