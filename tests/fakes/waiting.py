"""Waiting for a fact in a test; knows nothing of what is waited for."""

import asyncio
import itertools
from collections.abc import Callable


async def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns when `holds()` is true. Raises TimeoutError after `seconds`: a deadline for a broken run, no measurement."""
    async with asyncio.timeout(seconds):
        for _ in itertools.count():
            if holds():
                return
            await asyncio.sleep(0.005)
