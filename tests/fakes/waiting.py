"""Waiting for a fact in a test; knows nothing of what is waited for."""

import asyncio
import itertools
import time
from collections.abc import Callable


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns when `holds()` is true. Raises TimeoutError after `seconds`: a deadline for a broken run, no measurement."""
    async with asyncio.timeout(seconds):
        for _ in itertools.count():
            if holds():
                return
            await asyncio.sleep(0.005)


def until_sync(holds: Callable[[], object], seconds: float) -> None:
    """Returns when `holds` does, for callers without a loop."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"did not become true within {seconds:g} s"
        time.sleep(0.1)
