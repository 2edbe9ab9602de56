"""Fetches a model's files in a thread, and words why a load failed; must not know engines or any state."""

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from neuron_jax.daemon.replica import Listener
from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.frames import Progress

Fetch = Callable[[Callable[[str, int, int, str], None]], Path]
"""Blocks, and reports phase, done, total and unit meanwhile. Raises WeightsError and OSError."""
_log = logging.getLogger("neuron.lifecycle")


class AbandonedError(Exception):
    """Raised inside a fetching thread when nobody wants the model any more."""


async def fetched(fetch: Fetch, hear: Listener) -> Path:
    """What `fetch` gives, from a thread. The thread changes nothing here: the loop calls `hear` with what it reports, and when
    nobody waits any more it ends at its next report."""
    loop = asyncio.get_running_loop()
    abandoned = threading.Event()

    def report(phase: str, done: int, total: int, unit: str) -> None:
        if abandoned.is_set():
            raise AbandonedError
        loop.call_soon_threadsafe(hear, Progress(phase, done, total, unit))

    try:
        return await asyncio.to_thread(fetch, report)
    finally:
        abandoned.set()


def load_error(model_id: str, error: Exception) -> LoadError:
    """What those who asked for the load are told."""
    match error:
        case LoadError():
            return error
        case WeightsError():
            return LoadError(error.kind, error.message, error.extras)
        case EngineDied():
            return LoadError("engine_failed" if error.kind == "exited" else error.kind, str(error))
        case OSError():
            return LoadError("repo_fetch_failed", f"{type(error).__name__}: {error}")
    _log.error("loading %s failed unexpectedly", model_id, exc_info=error)
    return LoadError("internal", f"{type(error).__name__}: {error}")
