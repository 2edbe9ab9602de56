"""Fifty loads and unloads leave nothing behind: no file, process, port, task or memory. The double stands for engines."""

import asyncio
import gc
import os
from pathlib import Path

import pytest
from attrs import frozen

from neuron_jax.hardware.cpu import read_resident
from tests.fakes.live_neuron import LiveNeuron, with_neuron

CYCLES, WARM = 50, 15
SLACK = 4 << 20
"""Bytes by which memory may differ without growing: allocators are not exact."""


@frozen
class Held:
    """What this process holds, files and ports alike; the daemon runs in it."""

    files: int
    children: int
    tasks: int


def held() -> Held:
    pid = os.getpid()
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return Held(
        files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        children=sum(len(path.read_text().split()) for path in tasks),
        tasks=len(asyncio.all_tasks()),
    )


@pytest.mark.slow
def test_loads_and_unloads_leave_nothing(tmp_path: Path) -> None:
    """Measured when things have warmed up, and at the end."""

    async def cycle(neuron: LiveNeuron, number: int) -> None:
        await neuron.load()
        if number % 10 == 0:
            assert (await neuron.chat("on")).status_code == 200
        answer = await neuron.http.post("/models/unload", json={"model_id": "tiny"})
        assert answer.status_code == 200, answer.text

    async def use(neuron: LiveNeuron) -> None:
        for number in range(WARM):
            await cycle(neuron, number)
        gc.collect()
        before, memory = held(), read_resident().now
        for number in range(CYCLES - WARM):
            await cycle(neuron, number)
        gc.collect()

        assert held() == before
        assert read_resident().now - memory < SLACK

    with_neuron(tmp_path, use, load=False)
