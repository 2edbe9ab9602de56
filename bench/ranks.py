"""What a second process costs: the demo model on two devices, driven by one process and by a rank for each.

    python bench/ranks.py [--rounds 3] [--streams 1,4]

Both compute the same programs in float32 through XLA; with ranks, sums go through Gloo on loopback and every step is
announced over a link. The two are started side by side and measured in turns. Prints tokens per second and the time from
spawning to ready, with the persistent compile cache warm for the one process and the leader (JAX keeps no other rank's).
"""

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

from neuron_jax.config import cache_root
from neuron_jax.weights import sources
from neuron_jax.workers.engine_client import EngineClient, start_here
from neuron_jax.workers.frames import EngineSpec, GroupMember, Sampling, Submit

TOKENS = 96


async def start(name: str, path: Path, cache: Path) -> tuple[EngineClient, float]:
    """An engine on two devices: `one` process, or `ranks`."""
    began = time.monotonic()
    options = {"max_slots": 4, "chunk_tokens": 32, "decode_steps": 1, "max_context": 512, "compile_cache": str(cache)}
    if name == "one":
        spec = EngineSpec("demo", str(path), devices=(0, 1), tensor_parallel=2, quant="none", **options)
        client = await EngineClient.start(spec, inherited=os.environ)
    else:
        group = GroupMember(rank=0, world=2, secret="bench")
        spec = EngineSpec("demo", str(path), tensor_parallel=2, quant="none", group=group, **options)
        client = await EngineClient.start(spec, inherited=os.environ, others=[start_here((0,), os.environ)])
    ready = time.monotonic() - began
    while client.load.programs < client.load.programs_planned or not client.load.programs:  # noqa: ASYNC110 - a bench
        await asyncio.sleep(0.2)
    return client, ready


async def rate(client: EngineClient, streams: int) -> float:
    """Tokens per second of `streams` answers at once, after a prompt of a few tokens."""

    async def one(seed: int) -> None:
        with client.submit(Submit(0, [1, 2, 3 + seed], Sampling(temperature=0.0), TOKENS)) as outputs:
            async for _ in outputs:
                pass

    began = time.monotonic()
    await asyncio.gather(*(one(seed) for seed in range(streams)))
    return streams * TOKENS / (time.monotonic() - began)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", default="1,4")
    arguments = parser.parse_args()
    root = cache_root(os.environ)
    path = sources.locate(sources.parse_source("demo"), root / "models")
    assert path is not None, "the demo model is not here: make demo fetches it"
    seen: dict[tuple[str, int], list[float]] = {}
    clients = {}
    for name in ("one", "ranks"):
        clients[name], ready = await start(name, path, root / "compiled")
        print(f"{name}: ready after {ready:.1f} s")
    for turn in range(arguments.rounds + 1):
        for streams in map(int, arguments.streams.split(",")):
            for name, client in clients.items():
                found = await rate(client, streams)
                if turn:  # the first warms up
                    seen.setdefault((name, streams), []).append(found)
    for client in clients.values():
        await client.close()
    for (name, streams), rates in sorted(seen.items()):
        print(
            f"{name}, {streams} streams: {statistics.median(rates):.1f} tok/s ({', '.join(f'{r:.1f}' for r in rates)})"
        )


if __name__ == "__main__":
    asyncio.run(main())
