"""Compiles the declared programs ahead of time, in threads; knows keys and how to lower them, not what programs compute.

Only the thread that owns the engine looks at the results (`collect`). What is needed to serve is compiled at full speed;
the rest behind the first requests, by one thread that yields to whatever else the machine has to do. Of those that can be
done without, one that cannot be compiled is dropped.
"""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import jax
from attrs import define, field

from neuron_jax.engine.buckets import Key

log = logging.getLogger("neuron.engine")

NICENESS = 10
"""Of the thread that compiles in the background: steps get nine tenths of a processor that both want."""

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX calls it when a program is made, whether compiled or read from the persistent cache."""


@define(eq=False)
class Compiler:
    """Programs by key, as they become ready. Its owner's thread calls its methods, and `close` in the end."""

    lower: Callable[[Key], jax.stages.Lowered]
    workers: int
    ready: dict[Key, jax.stages.Compiled] = field(factory=dict, init=False)
    dropped: set[Key] = field(factory=set, init=False)  # could not be compiled
    unplanned: int = field(default=0, init=False)  # programs that other threads compiled since `watch`
    _watching: bool = field(default=False, init=False)
    _front: ThreadPoolExecutor = field(init=False)
    _tracer: ThreadPoolExecutor = field(init=False)
    _behind: ThreadPoolExecutor = field(init=False)
    _pending: dict[Key, Future[jax.stages.Compiled]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._front = ThreadPoolExecutor(self.workers, thread_name_prefix="compile")
        # Tracing holds the interpreter's lock. A thread of low priority that holds it can keep everybody waiting, so
        # only XLA's part, which does without the lock, runs in one.
        self._tracer = ThreadPoolExecutor(1, thread_name_prefix="compile-trace")
        self._behind = ThreadPoolExecutor(1, thread_name_prefix="compile-behind", initializer=_yield_to_others)

    def start(self, keys: Iterable[Key]) -> None:
        """Compile `keys` at full speed, in order."""
        for key in keys:
            self._pending[key] = self._front.submit(self._compile, key)

    def start_behind(self, keys: Iterable[Key]) -> None:
        """Compile those of `keys` that were not started yet behind everything else, in order."""
        for key in keys:
            if key not in self.ready and key not in self._pending:
                self._pending[key] = self._tracer.submit(self._compile_behind, key)

    def wait(self, keys: Iterable[Key], report: Callable[[int, int], None]) -> None:
        """Block until `keys` are ready. Raises what compiling raised."""
        wanted = list(keys)
        for done, key in enumerate(wanted):
            report(done, len(wanted))
            self._pending[key].result()
        report(len(wanted), len(wanted))
        self.collect()

    @property
    def planned(self) -> set[Key]:
        """Programs that are ready or will be."""
        return self.ready.keys() | self._pending.keys()

    def collect(self) -> None:
        """Take over what has been compiled since, and drop what could not be: steps are padded up to other programs."""
        for key in [key for key, future in self._pending.items() if future.done()]:
            self._take(key, self._pending.pop(key))

    def watch(self) -> None:
        """Count from now on, in `unplanned`, what is compiled outside of this plan: in steady state nothing should be."""
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        self._watching = True

    def close(self) -> None:
        if self._watching:
            jax.monitoring.unregister_event_duration_listener(self._heard)
            self._watching = False
        for pool in (self._front, self._tracer, self._behind):
            pool.shutdown(wait=False, cancel_futures=True)

    def _take(self, key: Key, done: Future[jax.stages.Compiled]) -> None:
        try:
            self.ready[key] = done.result()
        except Exception:
            log.exception("%s cannot be compiled; the engine does without it", key)
            self.dropped.add(key)

    def _compile(self, key: Key) -> jax.stages.Compiled:
        return self.lower(key).compile()

    def _compile_behind(self, key: Key) -> jax.stages.Compiled:
        return self._behind.submit(self.lower(key).compile).result()

    def _heard(self, event: str, duration_secs: float, **_: object) -> None:  # noqa: ARG002
        if event == COMPILED and not threading.current_thread().name.startswith("compile"):
            self.unplanned += 1


def _yield_to_others() -> None:
    # Linux knows priorities of threads, under their own ids.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
