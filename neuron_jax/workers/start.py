"""From a spec to a runner in this process: JAX's settings, devices, plan, weights; must not know sockets or the daemon.

Whoever imports jax before `configure` has run gets JAX's own settings instead of the spec's.
"""

import ctypes
import gc
import logging
import os
import runpy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen
from msgspec import structs

from neuron_jax.errors import LoadError
from neuron_jax.hardware.threads import Threads, read_threads
from neuron_jax.workers.faults import classify
from neuron_jax.workers.frames import EngineFailed, EngineSpec, MemoryRow, Progress

log = logging.getLogger("neuron.engine")

Report = Callable[[Progress], None]
Join = Callable[[], None]
"""Makes this process a rank of its group, once JAX is configured and before it is used."""
Agree = Callable[[str], None]
"""Told a digest of what will be served, before weights are read. Ranks of a group must have the same."""


@frozen
class Prepared:
    """What is known before weights are read: the open checkpoint, jax devices, and an `engine.build.Design`."""

    checkpoint: Any
    devices: list[Any]
    made: Any
    seconds: Mapping[str, float]  # what each phase took, in order


@frozen
class StartedEngine:
    """A runner that can serve. `seconds` tells what each phase of the start took, in order; `config` is the checkpoint's."""

    runner: Any
    made: Any
    devices: list[Any]
    config: Mapping[str, Any]
    seconds: Mapping[str, float]

    def lead(self) -> Any:
        """The engine over the runner, whose essential programs must be usable."""
        from neuron_jax.engine.build import lead

        return lead(self.made, self.runner)


@contextmanager
def prepare(spec: EngineSpec, join: Join = lambda: None) -> Iterator[Prepared]:
    """Import and configure JAX, find the devices, open the checkpoint and plan; the checkpoint is closed at the end.

    Raises LoadError where the platform is not there.
    """
    began = time.monotonic()
    require(spec.platform)
    configure(spec)
    join()
    from neuron_jax.weights.checkpoint import open_checkpoint

    found = devices(spec)
    there = time.monotonic()
    checkpoint = open_checkpoint(Path(spec.path))
    try:
        made = designed(spec, checkpoint)
        yield Prepared(checkpoint, found, made, {"jax": there - began, "plan": time.monotonic() - there})
    finally:
        checkpoint.close()


def designed(spec: EngineSpec, checkpoint: Any) -> Any:
    """The design of an engine for a checkpoint. Its tensors are looked at first: where a config says more than its files
    have, that is what is wrong, and not that so much does not fit."""
    from neuron_jax.engine.build import design_of, model_of
    from neuron_jax.weights.peft import read_adapter
    from neuron_jax.weights.place import check, check_layers

    check_layers(checkpoint)
    wanted = as_converted(spec, checkpoint)
    model = model_of(checkpoint.config, wanted, checkpoint.storage)
    check(model, checkpoint)
    if (transform := read_transform(spec)) is not None:
        model = model.transformed(transform)
    adapters = [read_adapter(Path(folder)) for folder in spec.adapters]
    return design_of(model, wanted, limit=memory_limit(spec), adapters=adapters)


def read_transform(spec: EngineSpec) -> Any:
    """The function `transform` in the file that the spec names; None without one. The file's other lines run, too.

    Raises LoadError bad_transform.
    """
    if not spec.transform:
        return None
    if spec.group is not None:
        raise LoadError(
            "bad_transform", "a transform is compiled into the programs of one process, not into those of ranks"
        )
    try:
        transform = runpy.run_path(spec.transform).get("transform")
    except Exception as error:
        raise LoadError("bad_transform", f"{spec.transform}: {type(error).__name__}: {error}") from error
    if not callable(transform):
        raise LoadError("bad_transform", f"{spec.transform} has no function `transform`")
    return transform


def as_converted(spec: EngineSpec, checkpoint: Any) -> EngineSpec:
    """`quant = "auto"` means of a converted checkpoint what it was converted to."""
    from neuron_jax.weights.converted import ConvertedCheckpoint

    if spec.quant != "auto" or not isinstance(checkpoint, ConvertedCheckpoint):
        return spec
    return structs.replace(spec, quant=checkpoint.made.quant)


def start(spec: EngineSpec, report: Report, join: Join = lambda: None, agree: Agree = lambda _: None) -> StartedEngine:
    """Load the model of `spec` and compile what is essential."""
    with prepare(spec, join) as ready:
        from neuron_jax.engine.build import digest, load_runner, program_for
        from neuron_jax.weights.place import load_params

        program = program_for(ready.made, ready.devices)
        agree(digest(ready.made, program, ready.checkpoint.tensors))
        began, reading = time.monotonic(), 0.0

        def load(model: Any, mesh: Any) -> Any:
            nonlocal reading
            params = load_params(model, ready.checkpoint, mesh, lambda *step: report(Progress(*step)))
            reading = time.monotonic() - began
            return params

        runner = load_runner(ready.made, program, load=load, report=report)
        give_back()
        made = _settled(ready.made, program, runner.compiler.ready)
        # Compiling runs beside reading: what is booked to it is what was left of it afterwards.
        left = time.monotonic() - began - reading
        seconds = {**ready.seconds, "weights": reading, "compile": left}
        return StartedEngine(runner, made, ready.devices, ready.checkpoint.config, seconds)


def configure(spec: EngineSpec) -> None:
    """JAX's own settings, before its first use, and the number of threads that compute on a CPU."""
    import jax

    from models.native import library

    threads = _threads(spec)
    os.environ["PJRT_NPROC"] = os.environ[library.THREADS] = str(
        threads.count
    )  # XLA's pool, and that of the native kernels
    if spec.platform == "cpu":
        log.info("computes with %d threads: %s", threads.count, threads.reason)

    jax.config.update("jax_platforms", spec.platform)
    if spec.platform == "cpu" and spec.group is not None:
        jax.config.update("jax_num_cpu_devices", len(spec.devices))
    elif spec.platform == "cpu" and len(spec.devices) > 1:
        jax.config.update("jax_num_cpu_devices", max(spec.devices) + 1)
    if spec.compile_cache:
        jax.config.update("jax_compilation_cache_dir", spec.compile_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _threads(spec: EngineSpec) -> Threads:
    return Threads(spec.threads, "engine.threads says so") if spec.threads else read_threads()


def require(platform: str) -> None:
    """A platform that JAX cannot use must be obvious: it would fall back, or fail with words about something else.

    Raises LoadError cuda_feature_not_enabled.
    """
    from neuron_jax.hardware.discover import has_cuda_plugin

    if platform == "cuda" and not has_cuda_plugin():
        raise LoadError(
            "cuda_feature_not_enabled",
            "CUDA was asked for, and JAX's CUDA plugin is not installed: pip install 'cortex-jax[cuda12]'",
        )


def give_back() -> None:
    """Return to the system what was freed: the C library keeps it for the next load or compilation, which never comes."""
    with suppress(AttributeError):  # other C libraries than GNU's
        ctypes.CDLL(None).malloc_trim(0)


def forget_tracing() -> None:
    """Drop what JAX keeps of all that was traced. Compiled programs go on; only tracing the same again would cost again."""
    import jax

    jax.clear_caches()
    gc.collect()
    give_back()


def failure(error: Exception) -> EngineFailed:
    """What is told of a start that failed."""
    from models.errors import ModelError
    from neuron_jax.engine.memory import DoesNotFitError
    from neuron_jax.weights.errors import WeightsError

    match error:
        case LoadError():
            return EngineFailed(error.kind, error.message)
        case DoesNotFitError():
            return EngineFailed("does_not_fit", str(error), tuple(MemoryRow(r.what, r.bytes) for r in error.rows))
        case ModelError() | WeightsError():
            return EngineFailed("bad_checkpoint", str(error))
    kind = classify(error)
    return EngineFailed(kind, f"{type(error).__name__}: {error}" if kind == "internal" else str(error))


def _settled(made: Any, program: Any, compiled: Mapping[Any, Any]) -> Any:
    """The design with its memory plan held against what the compiler says of the programs that are ready."""
    from neuron_jax.engine.memory import analyse, excess, held, measured_step, settle

    found = {str(key): memory for key, one in compiled.items() if (memory := analyse(one)) is not None}
    warning = excess(made.plan, measured_step(found.values()))
    if warning is not None:
        log.warning("%s", warning)
    return attrs.evolve(made, plan=settle(made.plan, found, held(program.abstract_state())))


def devices(spec: EngineSpec) -> list[Any]:
    """The devices of the spec, by index. On CUDA the environment makes only these visible, in this order.

    Of a group: all devices of all ranks, rank 0's first.
    """
    import jax

    found = jax.devices(spec.platform)
    if spec.group is not None:
        chosen = sorted(found, key=lambda device: (device.process_index, device.id))
    else:
        wanted = spec.devices if spec.platform == "cpu" else tuple(range(len(spec.devices)))
        chosen = [found[index] for index in wanted]
    assert len(chosen) == spec.tensor_parallel, f"{len(chosen)} devices for tensor_parallel {spec.tensor_parallel}"
    return chosen


def memory_limit(spec: EngineSpec) -> int:
    """Bytes that the engine may use on each device: of a group, on the one that has the least."""
    limit = _local_limit(spec)
    if spec.group is None:
        return limit
    from neuron_jax.workers.handshake import least

    return least(spec.group, limit // 2**20) * 2**20


def _local_limit(spec: EngineSpec) -> int:
    """Bytes on each device of this process."""
    import jax

    if spec.memory_mb:
        return spec.memory_mb * 2**20
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    from neuron_jax.hardware.cpu import read_memory

    # Ranks on one host share its memory; on several each has its own, and this is careful.
    return read_memory().available // spec.tensor_parallel
