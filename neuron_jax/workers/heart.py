"""A process's sign of life: what its main thread is at and since when, told every quarter of a second; must not know JAX.

The thread that tells it does nothing else. It goes on while the main thread waits for a device or a collective, and stops
with the process: so whoever listens can tell a step that takes too long from a process that does not run any more.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from neuron_jax.workers.frames import Pulse

BEAT_SECONDS = 0.25


class Heart:
    """Beats from the moment it is made. `tell` is called in the heart's own thread, and may raise OSError at the end."""

    def __init__(self, tell: Callable[[Pulse], None]) -> None:
        self._tell = tell
        self._work: tuple[str, float, float] | None = None  # what, since, allowed
        threading.Thread(target=self._beat, name="heart", daemon=True).start()

    @contextmanager
    def work(self, what: str, allowed: float = 0.0) -> Iterator[None]:
        """The main thread is at `what`, for which it has `allowed` seconds; 0 = for ever."""
        before, self._work = self._work, (what, time.monotonic(), allowed)
        try:
            yield
        finally:
            self._work = before

    def pulse(self) -> Pulse:
        work = self._work
        if work is None:
            return Pulse()
        what, since, allowed = work
        return Pulse(time.monotonic() - since, allowed, what)

    def _beat(self) -> None:
        while True:
            try:
                self._tell(self.pulse())
            except OSError:
                return  # the daemon is gone, and the process ends by that
            time.sleep(BEAT_SECONDS)
