"""Tasks that nobody awaits before the end; knows asyncio alone."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


def begun(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """A task whose failure is heard of."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_failure)
    return task


def _tell_failure(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.critical("%s has failed", task.get_name(), exc_info=error)
