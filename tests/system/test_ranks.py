"""The demo model by two processes, joined by Gloo on loopback: token for token what transformers said."""

import asyncio
import json
import pathlib
from typing import Any

import pytest

from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec, GroupMember, Sampling
from tests.fakes.groups import tokens, with_group

ROWS = json.loads((pathlib.Path(__file__).parent.parent / "data/smollm2-greedy.json").read_text())
SHORT = [row for row in ROWS if len(row["prompt_ids"]) <= 64][:3]


@pytest.mark.slow
def test_two_ranks_serve_the_demo_model(demo_gguf: pathlib.Path) -> None:
    """All at once, so that steps are shared; `deterministic` has one program to compile instead of twenty."""
    spec = EngineSpec(
        "demo",
        str(demo_gguf),
        tensor_parallel=2,
        quant="none",
        group=GroupMember(rank=0, world=2, secret="s"),
        max_slots=8,
        max_context=256,
        deterministic=True,
    )

    async def use(client: EngineClient) -> list[list[int]]:
        asked = (tokens(client, row["prompt_ids"], Sampling(temperature=0.0), 12) for row in SHORT)
        return await asyncio.gather(*asked)

    found: Any = asyncio.run(with_group(spec, use))

    assert len(SHORT) == 3
    for row, ids in zip(
        SHORT, found, strict=True
    ):  # the reference ends with the end of the answer, the engine was not told to
        assert ids[: len(row["greedy_ids"])] == row["greedy_ids"][:12]
