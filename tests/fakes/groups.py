"""Engines of one process or of several, real ones on this machine; nothing of them is left after."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from neuron_jax.workers.engine_client import EngineClient, start_here
from neuron_jax.workers.frames import EngineSpec, Sampling, Submit
from neuron_jax.workers.process import DEFAULT_COMMAND
from tests.fakes import quick

INHERITED = os.environ | quick.ENVIRON
"""Their programs are compiled quickly: what is compared is tokens, and all sides compile alike."""

Use = Callable[[EngineClient], Awaitable[Any]]


async def with_group(told: EngineSpec, use: Use, command: tuple[str, ...] = DEFAULT_COMMAND) -> Any:
    """What `use` gives on an engine of the spec; sees that no process is left."""
    world = told.group.world if told.group is not None else 1
    others = [start_here((0,), INHERITED, command) for _ in range(world - 1)]
    client = await EngineClient.start(told, inherited=INHERITED, command=command, others=others)
    pids = [rank.pid for rank in client.ranks]
    try:
        return await use(client)
    finally:
        await client.close()
        assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def tokens(client: EngineClient, prompt: list[int], sampling: Sampling, most: int = 24) -> list[int]:
    with client.submit(Submit(0, prompt, sampling, most)) as outputs:
        return [token async for output in outputs for token in output.tokens]
