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
import time
from pathlib import Path
from typing import Any, NoReturn

from neuron_jax.workers.frames import (
    Cancel,
    Command,
    CommandReader,
    EngineSpec,
    Event,
    Failed,
    Load,
    MemoryRow,
    Progress,
    Ready,
    Report,
    Shutdown,
    Step,
    Submit,
    encode,
)

log = logging.getLogger("neuron.engine")

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve the model that the first frame names, until told to stop or left alone."""
    parser = argparse.ArgumentParser(prog="neuron-engine")
    parser.add_argument("--fd", type=int, required=True, help="the connected socket to the daemon")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    _die_with_parent()
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
        _send(link, _failure(error))
        _end(1)
    _serve(engine, link, inbox)
    _end(0)


def _end(code: int) -> NoReturn:
    """End at once: a compilation in a background thread cannot be interrupted, and nobody is left to wait for it."""
    logging.shutdown()
    os._exit(code)


def _serve(engine: Any, link: socket.socket, inbox: "queue.SimpleQueue[Command]") -> None:
    """The loop: take what came in, make a step, send what came out. Sleeps only when there is nothing to do."""
    while True:
        if engine.idle:
            engine.check_integrity()
            _send(link, Report(engine.load))
            if not _apply(engine, inbox.get()):
                return
        while not inbox.empty():
            if not _apply(engine, inbox.get()):
                return
        outputs = engine.step()
        if outputs:
            _send(link, Step(outputs, engine.load))


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
    began = time.monotonic()
    import jax

    _configure(jax, spec)
    from neuron_jax.engine.build import assemble, design
    from neuron_jax.weights.checkpoint import open_checkpoint
    from neuron_jax.weights.place import load_params

    devices = _devices(jax, spec)
    checkpoint = open_checkpoint(Path(spec.path))
    try:
        made = design(checkpoint.config, spec, limit=_memory_limit(devices[0], spec))
        log.info(
            "%s: %s", spec.model_id, "; ".join(f"{row.what} {row.bytes / 2**20:,.0f} MiB" for row in made.plan.rows)
        )

        def report(progress: Progress) -> None:
            _send(link, progress)

        def load(model: Any, mesh: Any) -> Any:
            return load_params(model, checkpoint, mesh, lambda *step: report(Progress(*step)))

        engine = assemble(made, devices=devices, load=load, report=report)
    finally:
        checkpoint.close()
    _send(
        link,
        Ready(
            max_context=made.plan.max_context,
            max_slots=made.shapes.max_slots,
            page_size=made.shapes.page_size,
            pages=made.plan.pages,
            quant=made.quant,
            quant_reason=made.quant_reason,
            compute_dtype=jax.numpy.dtype(made.dtype).name,
            devices=tuple(str(device) for device in devices),
            plan=made.plan.rows,
            load_seconds=time.monotonic() - began,
        ),
    )
    return engine


def _configure(jax: Any, spec: EngineSpec) -> None:
    """JAX's own settings, before its first use."""
    jax.config.update("jax_platforms", spec.platform)
    if spec.platform == "cpu" and len(spec.devices) > 1:
        jax.config.update("jax_num_cpu_devices", max(spec.devices) + 1)
    if spec.compile_cache:
        jax.config.update("jax_compilation_cache_dir", spec.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _devices(jax: Any, spec: EngineSpec) -> list[Any]:
    """The devices of the spec, by index. On CUDA the daemon made only these visible, in this order."""
    found = jax.devices(spec.platform)
    wanted = spec.devices if spec.platform == "cpu" else tuple(range(len(spec.devices)))
    chosen = [found[index] for index in wanted]
    assert len(chosen) == spec.tensor_parallel, f"{len(chosen)} devices for tensor_parallel {spec.tensor_parallel}"
    return chosen


def _memory_limit(device: Any, spec: EngineSpec) -> int:
    """Bytes that the engine may use on each device."""
    if spec.memory_mb:
        return spec.memory_mb * 2**20
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    from neuron_jax.hardware.cpu import read_memory

    return read_memory().available // spec.tensor_parallel


def _failure(error: Exception) -> Failed:
    """What the daemon is told of a load that failed."""
    from models.errors import ModelError
    from neuron_jax.engine.memory import DoesNotFitError
    from neuron_jax.weights.errors import WeightsError

    match error:
        case DoesNotFitError():
            return Failed("does_not_fit", str(error), tuple(MemoryRow(r.what, r.bytes) for r in error.rows))
        case ModelError() | WeightsError():
            return Failed("bad_checkpoint", str(error))
    if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
        return Failed("out_of_memory", str(error))
    return Failed("internal", f"{type(error).__name__}: {error}")


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
