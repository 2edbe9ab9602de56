"""The engine process of a model that reads whole texts: its start and its loop. Knows frames and arrays, no sockets.

The loop is a fold of two verbs: the next call is begun before the one before is fetched, so that host and device work at
the same time.
"""

import logging
import os
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from attrs import define, field, frozen

from neuron_jax.errors import LoadError
from neuron_jax.workers import watchdog
from neuron_jax.workers.frames import (
    Cancel,
    Command,
    Embed,
    EngineLoad,
    EngineSpec,
    Event,
    LoadReport,
    Progress,
    Ready,
    Shutdown,
    Vectors,
)
from neuron_jax.workers.heart import Heart
from neuron_jax.workers.start import configure, devices, forget_tracing, give_back, memory_limit, require

log = logging.getLogger("neuron.engine")

Tell = Callable[[Event], None]
SMOOTH = 0.2
"""The share of the newest call in an average."""


@frozen
class StartedEmbedder:
    """What serves, and what is told of it."""

    runner: Any  # engine.embedding.runner.EmbedRunner
    made: Any  # engine.embedding.build.EmbedDesign
    ready: Ready


def reads_whole_texts(spec: EngineSpec) -> bool:
    """Whether the model of a spec is one for this module, rather than one that generates."""
    from models.registry import gguf_embeds, purpose
    from neuron_jax.weights.checkpoint import open_checkpoint
    from neuron_jax.weights.gguf import first_values

    path = Path(spec.path)
    if path.is_file():  # GGUF, whose whole header takes long to read
        return gguf_embeds(*first_values(path))
    with open_checkpoint(path) as checkpoint:
        return purpose(checkpoint.config) != "generate"


def start(spec: EngineSpec, tell: Tell) -> StartedEmbedder:
    """Load the model and compile all its programs; Ready is told by `serve`. Raises LoadError where it cannot be spread."""
    if spec.group is not None or spec.tensor_parallel > 1:
        raise LoadError("bad_devices", "a model that embeds texts is served on one device; use replicas for more")
    began = time.monotonic()
    require(spec.platform)
    configure(spec)
    import jax

    from models.sharding import make_mesh
    from neuron_jax.engine.embedding.runner import EmbedRunner, compile_all
    from neuron_jax.weights.checkpoint import open_checkpoint
    from neuron_jax.weights.place import load_params

    found = devices(spec)
    mesh = make_mesh(found)
    with open_checkpoint(Path(spec.path)) as checkpoint:
        made = designed(spec, checkpoint)
        params = load_params(made.model, checkpoint, mesh, lambda *step: tell(Progress(*step)))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    programs = compile_all(
        made.model, shapes, made.sizes, lambda done, total: tell(Progress("compile", done, total, "programs"))
    )
    give_back()
    seconds = time.monotonic() - began
    return StartedEmbedder(EmbedRunner(params, programs), made, _ready(spec, made, found, seconds))


def designed(spec: EngineSpec, checkpoint: Any) -> Any:
    """What `workers.start.designed` does, for a model of whole texts."""
    from neuron_jax.engine.embedding.build import design_of, model_of
    from neuron_jax.weights.place import check

    model = model_of(checkpoint.config, spec, checkpoint.storage)
    check(model, checkpoint)
    return design_of(model, spec, limit=memory_limit(spec))


def _ready(spec: EngineSpec, made: Any, found: list[Any], seconds: float) -> Ready:
    from neuron_jax.engine.embedding.build import SLOTS

    nothing = "a model of whole texts keeps nothing of them"
    return Ready(
        max_context=made.max_context,
        max_slots=spec.max_slots or SLOTS,
        page_size=0,
        pages=0,
        quant="none",
        quant_reason=f"{np.dtype(made.dtype).name}, as such models are kept",
        kv_dtype="none",
        kv_reason=nothing,
        attention="xla",
        attention_reason="over whole texts, packed into rows",
        compute_dtype=np.dtype(made.dtype).name,
        devices=tuple(str(device) for device in found),
        plan=made.rows,
        load_seconds=seconds,
        width=made.model.width,
        threads=int(os.environ["PJRT_NPROC"]),
    )


@define(eq=False)
class EmbedEngine:
    """The loop's state: the line of texts, and what it has done. One thread calls it."""

    runner: Any
    line: Any  # engine.embedding.line.Line
    clock: Callable[[], float] = time.perf_counter
    load: EngineLoad = field(factory=EngineLoad, init=False)
    _rate: float = field(default=0.0, init=False)
    _steps: int = field(default=0, init=False)
    _usual: float = field(default=0.0, init=False)
    _free: float = field(
        default=0.0, init=False
    )  # since when the device has nothing before the call that was begun last

    @property
    def usual(self) -> float:
        """Seconds of a call, averaged; 0 before the first."""
        return self._usual

    def begin(self) -> tuple[Any, Any, float] | None:
        """Begins the next call; None where no text waits."""
        call = self.line.next_call()
        return None if call is None else (call, self.runner.start(call), self.clock())

    def finish(self, begun: tuple[Any, Any, float]) -> list[Vectors]:
        """Waits for a call, and tells each of its requests what became of its texts."""
        call, result, since = begun
        values = self.runner.fetch(call, result)
        now = self.clock()
        self._count(call.tokens, now - max(since, self._free))
        self._free = now
        places: dict[int, list[int]] = {}
        lines: dict[int, list[int]] = {}
        for number, text in enumerate(call.texts):
            if self.line.computed(text) is not None:
                places.setdefault(text.request, []).append(text.index)
                lines.setdefault(text.request, []).append(number)
        self.load = self._look()
        return [
            Vectors(request, found, values[lines[request]].astype("<f4").tobytes(), self.load)
            for request, found in places.items()
        ]

    def _count(self, tokens: int, seconds: float) -> None:
        self._steps += 1
        rate = tokens / max(seconds, 1e-9)
        first = self._steps == 1
        self._rate = rate if first else (1 - SMOOTH) * self._rate + SMOOTH * rate
        self._usual = seconds if first else (1 - SMOOTH) * self._usual + SMOOTH * seconds

    def _look(self) -> EngineLoad:
        programs = len(self.runner.programs)
        return EngineLoad(
            running=self.line.requests,
            waiting=self.line.waiting,
            prefill_rate=self._rate,
            steps=self._steps,
            programs=programs,
            programs_planned=programs,
        )


def serve(
    started: StartedEmbedder, spec: EngineSpec, heart: Heart, inbox: "queue.SimpleQueue[Command]", tell: Tell
) -> None:
    """The loop: take what came in, begin a call, fetch the one before. Sleeps only when there is nothing to do."""
    from neuron_jax.engine.embedding.line import Line

    engine = EmbedEngine(started.runner, Line(started.made.sizes))
    tell(started.ready)
    forget_tracing()
    begun = None
    while True:
        if begun is None and not engine.line.waiting:
            tell(LoadReport(engine.load))
            if not _apply(engine, inbox.get()):
                return
        while not inbox.empty():
            if not _apply(engine, inbox.get()):
                return
        following = engine.begin()
        if begun is not None:
            with heart.work("a call of texts", watchdog.allowed(spec, engine.usual)):
                finished = engine.finish(begun)
            for vectors in finished:
                tell(vectors)
        begun = following


def _apply(engine: EmbedEngine, command: Command) -> bool:
    """Carry out one command; False when it was the last."""
    match command:
        case Embed():
            engine.line.add(command)
        case Cancel(request):
            engine.line.cancel(request)
        case Shutdown():
            return False
        case _:
            raise AssertionError(f"a model of whole texts does not do {type(command).__name__}")
    return True
