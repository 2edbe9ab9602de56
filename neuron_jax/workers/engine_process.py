"""The engine process: frames on one side, the engine on the other. The only module that joins JAX to a socket.

Started by the daemon as `python -m neuron_jax.workers.engine_process --fd N` with one end of a socket pair. The main
thread owns every JAX call; one other thread reads commands. When the daemon goes away the process ends, whatever it does.
"""

import argparse
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

import numpy as np

from neuron_jax.workers.frames import (
    Cancel,
    Command,
    CommandReader,
    EngineSpec,
    Event,
    Load,
    Ready,
    Report,
    Shutdown,
    Step,
    Submit,
    encode,
)
from neuron_jax.workers.start import failure, forget_tracing, start

log = logging.getLogger("neuron.engine")

PR_SET_PDEATHSIG = 1

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter to itself. By default it is 5 ms, which a step would wait for whenever it comes
back from the device while another thread traces a program."""
LOOK_SECONDS = 0.5
"""How often an idle engine looks for programs that were compiled in the background."""


def main() -> None:
    """Serve the model that the first frame names, until told to stop or left alone."""
    parser = argparse.ArgumentParser(prog="neuron-engine")
    parser.add_argument("--fd", type=int, required=True, help="the connected socket to the daemon")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    _die_with_parent()
    sys.setswitchinterval(SWITCH_SECONDS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to handle
    link = socket.socket(fileno=arguments.fd)
    inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(link, inbox), name="commands", daemon=True).start()
    first = inbox.get()
    assert isinstance(first, Load), first
    try:
        engine = _build(first.spec, link)
    except Exception as error:
        log.exception("%s could not be loaded", first.spec.model_id)
        _send(link, failure(error))
        _end(1)
    _serve(engine, link, inbox)
    _end(0)


def _end(code: int) -> NoReturn:
    """End at once: a compilation in a background thread cannot be interrupted, and nobody is left to wait for it."""
    logging.shutdown()
    os._exit(code)


def _serve(engine: Any, link: socket.socket, inbox: "queue.SimpleQueue[Command]") -> None:
    """The loop: take what came in, make a step, send what came out. Sleeps only when there is nothing to do."""
    settled = False
    while True:
        if engine.idle:
            engine.check_integrity()
            _send(link, Report(engine.load))
            if not (settled or engine.compiling):
                forget_tracing()
                settled = True
            command = _wait(engine, inbox)
            if command is None:
                continue
            if not _apply(engine, command):
                return
        while not inbox.empty():
            if not _apply(engine, inbox.get()):
                return
        outputs = engine.step()
        if outputs:
            _send(link, Step(outputs, engine.load))


def _wait(engine: Any, inbox: "queue.SimpleQueue[Command]") -> Command | None:
    """The next command; None after a look at the programs that are still being compiled."""
    if not engine.compiling:
        return inbox.get()
    try:
        return inbox.get(timeout=LOOK_SECONDS)
    except queue.Empty:
        engine.collect()
        return None


def _apply(engine: Any, command: Command) -> bool:
    """Carry out one command; False when it was the last."""
    match command:
        case Submit():
            engine.submit(command)
        case Cancel(request):
            engine.cancel(request)
        case Shutdown():
            return False
        case Load():
            raise AssertionError("an engine process loads one model, once")
    return True


def _build(spec: EngineSpec, link: socket.socket) -> Any:
    """Load the model, reporting progress, and say that it is ready."""
    started = start(spec, lambda progress: _send(link, progress))
    made = started.made
    rows = "; ".join(f"{row.what} {row.bytes / 2**20:,.0f} MiB" for row in made.plan.rows)
    spent = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in started.seconds.items())
    log.info("%s: %s; ready in %.1f s: %s", spec.model_id, rows, sum(started.seconds.values()), spent)
    _send(
        link,
        Ready(
            max_context=made.plan.max_context,
            max_slots=made.shapes.max_slots,
            page_size=made.shapes.page_size,
            pages=made.plan.pages,
            quant=made.quant,
            quant_reason=made.quant_reason,
            kv_dtype=made.kv.name,
            kv_reason=made.kv_reason,
            attention=started.engine.runner.program.attention.name,
            attention_reason=started.engine.runner.program.attention.reason,
            compute_dtype=np.dtype(made.dtype).name,
            devices=tuple(str(device) for device in started.devices),
            plan=made.plan.rows,
            load_seconds=sum(started.seconds.values()),
            deterministic=made.deterministic,
            deterministic_reason=made.deterministic_reason,
        ),
    )
    return started.engine


def _read(link: socket.socket, inbox: "queue.SimpleQueue[Command]") -> None:
    """Commands into the inbox, until the daemon closes its end: then nobody is left to work for."""
    try:
        _read_all(link, inbox)
    except ConnectionError:
        log.info("the daemon went away with words of ours unread")
    except Exception:
        log.exception("what the daemon sent could not be understood")
        _end(1)
    _end(0)


def _read_all(link: socket.socket, inbox: "queue.SimpleQueue[Command]") -> None:
    reader = CommandReader()
    while chunk := link.recv(1 << 20):
        for command in reader.feed(chunk):
            inbox.put(command)


def _send(link: socket.socket, event: Event) -> None:
    link.sendall(encode(event))


def _die_with_parent() -> None:
    """Ask Linux to kill this process with the daemon, should that be killed without a chance to close its socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
