"""Waking up everybody who waits for something to change; knows nothing of what changes."""

import asyncio


class News:
    """`tell` wakes those who wait now, and nobody who comes later: look first, then wait."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Returns at the next `tell`, or after `seconds`."""
        event = self._event
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return
