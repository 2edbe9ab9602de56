"""What an engine answers to one caller, as asyncio sees it: tokens or vectors, up to the last or its death. Knows no engine."""

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from neuron_jax.errors import EngineDied
from neuron_jax.workers.frames import Output, Vectors

Forget = Callable[[int], None]
"""Cancels a request by its number."""


class Outputs:
    """The answers to some submissions, in order of arrival: iterate it inside `with`; leaving cancels what is open.

    Attributes:
        read: tokens of the prompt that are computed, and those of them that the prefix cache had, as far as it was told.
    """

    def __init__(self, forget: Forget, requests: Sequence[int]) -> None:
        self._forget = forget
        self._index = {request: index for index, request in enumerate(requests)}
        self._open = set(requests)
        self._queue: asyncio.Queue[Output | EngineDied] = asyncio.Queue()
        self.read = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for request in tuple(self._open):
            self.cancel(request)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        """The next output. Raises EngineDied when the process is gone, StopAsyncIteration after the last finish."""
        while self._open:
            item = await self._queue.get()
            if self._wanted(item):
                return self._take(item)
        raise StopAsyncIteration

    async def next(self, timeout: float) -> Output | None:  # noqa: ASYNC109 - returns None, so that heartbeats can be sent
        """As `anext`, or None when nothing came for `timeout` seconds."""
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if self._wanted(item):
                return self._take(item)
        try:
            async with asyncio.timeout(timeout):
                return await anext(self)
        except TimeoutError:
            return None

    def index(self, output: Output) -> int:
        """Which of the submissions, in the order they were given, `output` answers."""
        return self._index[output.request]

    @property
    def open(self) -> int:
        """Submissions that have not finished."""
        return len(self._open)

    def cancel(self, request: int) -> None:
        """Ends one submission within an engine step; none of its outputs is seen afterwards."""
        if request in self._open:
            self._open.discard(request)
            self._forget(request)

    def put(self, item: Output | EngineDied) -> None:
        """Called by the client's reader only."""
        self._queue.put_nowait(item)

    def _wanted(self, item: Output | EngineDied) -> bool:
        """False for what a submission that was cancelled had still in the queue."""
        return isinstance(item, EngineDied) or item.request in self._open

    def _take(self, item: Output | EngineDied) -> Output:
        if isinstance(item, EngineDied):
            self._open.clear()
            raise item.again()
        if item.finish is not None:
            self._open.discard(item.request)
        return item


class TextVectors:
    """What is made of the texts of one request: use it inside `with`; leaving cancels what is open."""

    def __init__(self, forget: Forget, request: int, count: int) -> None:
        self._forget = forget
        self._request = request
        self._left = count
        self._queue: asyncio.Queue[Vectors | EngineDied] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._left:
            self._forget(self._request)

    @property
    def open(self) -> int:
        """Texts of which nothing was made yet."""
        return self._left

    async def next(self) -> Vectors:
        """What was made of the next texts. Raises EngineDied when the process is gone."""
        item = await self._queue.get()
        if isinstance(item, EngineDied):
            self._left = 0
            raise item.again()
        self._left -= len(item.places)
        return item

    def put(self, item: Vectors | EngineDied) -> None:
        """Called by the client's reader only."""
        self._queue.put_nowait(item)
