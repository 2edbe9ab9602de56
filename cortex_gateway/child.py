"""A neuron as a child process: started in a session of its own, its output in a file, ended with all that it started."""

import asyncio
import contextlib
import ctypes
import os
import pathlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence

LAST_LINES = 15
STOP_SECS = 15.0
PR_SET_PDEATHSIG = 1  # prctl(2)


@contextlib.asynccontextmanager
async def child(
    command: Sequence[str], log: pathlib.Path, *, hurry: asyncio.Event | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process while the block runs. Whatever ends the block, afterwards the process and its own children are gone.

    A session of its own keeps the terminal's Ctrl-C from it: it is asked to stop once, by us, when we have drained;
    `hurry` ends our patience. Where we are killed, Linux asks it to stop.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=_tied_to_us(),
        )
    try:
        yield process
    finally:
        await asyncio.shield(_stop(process, hurry or asyncio.Event()))


def last_lines(log: pathlib.Path) -> str:
    """The end of the child's output, for a person to read."""
    with contextlib.suppress(FileNotFoundError):
        return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    return ""


def _tied_to_us() -> Callable[[], None] | None:
    """What the child runs before its program: from then on the kernel sends it SIGTERM when we die, however we do.

    Source: prctl(2), PR_SET_PDEATHSIG. It is about the thread that forks, which is our main one.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # we died before the kernel knew
            os._exit(1)

    return tie


async def _stop(process: asyncio.subprocess.Process, hurry: asyncio.Event) -> None:
    """SIGTERM, then after STOP_SECS or in a hurry no more asking; at last whoever is left in its session."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(process.wait()), asyncio.create_task(hurry.wait())]
        await asyncio.wait(waits, timeout=STOP_SECS, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
