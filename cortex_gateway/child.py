"""A neuron as a child process: started in a session of its own, its output in a file, ended with all that it started."""

import asyncio
import contextlib
import os
import pathlib
import signal
from collections.abc import AsyncIterator, Sequence

LAST_LINES = 15
STOP_SECS = 15.0


@contextlib.asynccontextmanager
async def child(command: Sequence[str], log: pathlib.Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process while the block runs. Whatever ends the block, afterwards the process and its own children are gone.

    A session of its own keeps the terminal's Ctrl-C from it: it is asked to stop once, by us, when we have drained.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        await asyncio.shield(_stop(process))


def last_lines(log: pathlib.Path) -> str:
    """The end of the child's output, for a person to read."""
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    return ""


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then after STOP_SECS no more asking; at last whoever is left in its session."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
