"""The process that `neuron bench` measures: starts an engine, runs the cases on it, tells the report. No HTTP, no terminal.

Started by `neuron_jax.benchmark.run`. It tells progress records
{"phase", "done", "total", "unit"}, and last {"report": ...}.
"""

import gc
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import attrs
import msgspec
import numpy as np
from attrs import define, field, frozen

from neuron_jax.benchmark import report
from neuron_jax.benchmark.cases import Case, Decode, Options, Prefill, cases, misfits
from neuron_jax.benchmark.drive import Drive
from neuron_jax.benchmark.figures import Spread, decode_figures, long_figures, prefill_rate
from neuron_jax.errors import LoadError
from neuron_jax.hardware.cpu import read_resident
from neuron_jax.workers.child import Record, Tell, child_main
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.start import StartedEngine, forget_tracing, start

PARTS = ("plan", "pack", "dispatch", "absorb", "wait")
"""What a step of the engine consists of for the host; all but the waiting is its own work."""


@frozen
class MachineLimits:
    """What the machine can do at most, over all devices of the engine, and what the model asks of it."""

    ceilings: Any  # benchmark.ceilings.Ceilings
    costs: Any  # benchmark.costs.Costs


@define
class CaseFigures:
    """What the counted attempts at one case gave: streams, and the engine's own seconds by part."""

    rounds: list[Any] = field(factory=list)
    seconds: dict[str, float] = field(factory=lambda: dict.fromkeys((*PARTS, "steps"), 0.0))


def work(spec: EngineSpec, given: Mapping[str, Any], tell: Tell) -> None:
    """The whole run."""
    options = msgspec.convert(given["cases"], Options)
    began = float(given["began"])
    started = start(spec, lambda progress: tell(msgspec.to_builtins(progress)))
    ready, peak = time.monotonic() - began, read_resident().peak
    listed = cases(options)
    wrong = misfits(listed, max_context=started.made.plan.max_context, max_slots=started.made.shapes.max_slots)
    if wrong:
        raise LoadError("bench", "; ".join(wrong))
    engine = started.lead()
    _compile_all(engine, len(started.made.buckets.keys()), tell)
    compiled = time.monotonic() - began
    seen = run_cases(engine, listed, options.rounds, tell)
    memory = {"resident": read_resident().now, "peak": peak, **_planned(started)}
    model = _model(spec, started)
    # Its pages may fill a GPU: without the engine there is room for measuring what the machine can do.
    del engine
    started = attrs.evolve(started, runner=None)
    gc.collect()
    limits = _limits(spec, started, memory["kv_token"])
    tell(
        {
            "report": {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "model": model,
                "machine": given["machine"],
                "versions": _versions(),
                "start": {
                    "seconds": ready,
                    "phases": dict(started.seconds),
                    "all_programs_seconds": compiled,
                    "programs": len(started.made.buckets.keys()),
                },
                "memory": memory,
                "ceilings": attrs.asdict(limits.ceilings),
                "rounds": options.rounds,
                "cases": [told(case, seen[case], limits) for case in listed],
            }
        }
    )


def _compile_all(engine: Any, total: int, tell: Tell) -> None:
    """Wait for the programs that are compiled behind the first requests: what is measured is the steady state."""
    while (done := len(engine.runner.compiler.ready)) < total:
        tell({"phase": "compile", "done": done, "total": total, "unit": "programs"})
        time.sleep(0.1)
        engine.collect()
    forget_tracing()  # as the engine's own process does then
    tell({"phase": "compile", "done": total, "total": total, "unit": "programs"})


def run_cases(engine: Any, listed: Sequence[Case], rounds: int, tell: Tell) -> dict[Case, CaseFigures]:
    """All cases in rounds, so that a drift of the machine hits all alike. Round 0 warms up and is not counted."""
    drive = Drive(engine, time.perf_counter, engine.runner.program.model.vocab_size)
    seen = {case: CaseFigures() for case in listed}
    total = (rounds + 1) * len(listed)
    for done, (attempt, case) in enumerate((attempt, case) for attempt in range(rounds + 1) for case in listed):
        tell({"phase": "measure", "done": done, "total": total, "unit": "cases"})
        before = _engine_seconds(engine)
        found = _attempt(drive, case, attempt)
        if attempt:
            seen[case].rounds.append(found)
            for name, seconds in _engine_seconds(engine).items():
                seen[case].seconds[name] += seconds - before[name]
    tell({"phase": "measure", "done": total, "total": total, "unit": "cases"})
    return seen


def _attempt(drive: Drive, case: Case, attempt: int) -> Any:
    match case:
        case Decode():
            return drive.decode(case, attempt)
        case Prefill():
            return drive.prefill(case, attempt)
    return drive.beside(case, attempt)


def told(case: Case, seen: CaseFigures, limits: MachineLimits) -> Record:
    ceilings, costs = limits.ceilings, limits.costs
    match case:
        case Decode():
            figures = decode_figures(seen.rounds)
            moved = costs.decode_bytes(case.streams, case.prompt + case.generate / 2) * figures.decode / case.streams
            return report.decode_row(case, figures, moved / ceilings.copy, _parts(seen))
        case Prefill():
            rate = prefill_rate(seen.rounds, case.prompt)
            first = Spread.of([stream.first - stream.sent for stream in seen.rounds])
            reached = costs.prefill_flops(case.prompt) / case.prompt * rate / ceilings.matmul
            return report.prefill_row(case, rate, first, reached, _parts(seen))
    return report.long_row(case, long_figures(seen.rounds), _parts(seen))


def _parts(seen: CaseFigures) -> dict[str, float]:
    """Milliseconds of a step by part, and all that is the host's own."""
    steps = max(seen.seconds["steps"], 1.0)
    parts = {name: 1000 * seen.seconds[name] / steps for name in PARTS}
    return {"host": sum(parts.values()) - parts["wait"], **parts, "steps": steps}


def _engine_seconds(engine: Any) -> dict[str, float]:
    times = engine.times
    return {name: float(getattr(times, name)) for name in (*PARTS, "steps")}


def _limits(spec: EngineSpec, started: StartedEngine, kv_token: int) -> MachineLimits:
    """Measured twice, because other work on the machine only ever lowers what is seen."""
    from neuron_jax.benchmark.ceilings import measure
    from neuron_jax.benchmark.costs import costs

    first, second = (measure(started.devices[0], started.made.dtype) for _ in range(2))
    # CPU devices are one machine; each GPU has memory and units of its own.
    times = len(started.devices) if spec.platform == "cuda" else 1
    best = attrs.evolve(
        first, copy=times * max(first.copy, second.copy), matmul=times * max(first.matmul, second.matmul)
    )
    return MachineLimits(best, costs(started.made.model, started.config, kv_token))


def _planned(started: StartedEngine) -> dict[str, int]:
    """Bytes over all devices of what is computed with; `kv_token` of a token that no window has left."""
    from models.spec import PagedLayer

    made, devices = started.made, len(started.devices)
    weights = sum(row.bytes for row in made.plan.rows if row.what == "weights") * devices
    kv = sum(row.bytes for row in made.plan.rows if row.what.startswith("KV")) * devices
    paged = [layer for layer in made.model.layers if isinstance(layer, PagedLayer)]
    return {"weights": weights, "kv": kv, "kv_token": sum(made.kv.token_bytes(layer) for layer in paged)}


def _model(spec: EngineSpec, started: StartedEngine) -> Record:
    made, attention = started.made, started.runner.program.attention
    return {
        "id": spec.model_id,
        "quant": {"chosen": made.quant, "reason": made.quant_reason},
        "kv_dtype": {"chosen": made.kv.name, "reason": made.kv_reason},
        "attention": {"chosen": attention.name, "reason": attention.reason},
        "compute_dtype": np.dtype(made.dtype).name,
        "max_context": made.plan.max_context,
        "max_slots": made.shapes.max_slots,
        "page_size": made.shapes.page_size,
        "pages": made.plan.pages,
    }


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("cortex-jax", "jax", "jaxlib")} | {"python": platform.python_version()}


if __name__ == "__main__":
    child_main(work)
