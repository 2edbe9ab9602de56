"""The process behind `neuron plan --compile`: every program of an engine, compiled into the persistent cache, one by one.

Started by `neuron_jax.workers.child`. It tells {"phase", "done", "total", "unit"} as it goes, {"program": ...} for each
program, and last {"plan": rows} with what a step takes by measurement. No weights are read.
"""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from attrs import define, field

from neuron_jax.workers.child import Record, Tell, child_main
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.start import prepare

HIT = "/jax/compilation_cache/cache_hits"
"""What JAX calls it when a program was in the persistent cache."""


@define
class Hits:
    """Counts programs found in the persistent cache."""

    count: int = field(default=0, init=False)

    def heard(self, event: str, **_: object) -> None:
        self.count += event == HIT


def work(spec: EngineSpec, _: Mapping[str, Any], tell: Tell) -> None:
    """Compile everything in the order of the plan."""
    with prepare(spec) as ready:
        import jax

        from neuron_jax.engine.build import program_for
        from neuron_jax.engine.memory import analyse, held, settle

        hits, found = Hits(), {}
        jax.monitoring.register_event_listener(hits.heard)
        made, keys = ready.made, ready.made.buckets.keys()
        program = program_for(made, ready.devices)
        for done, key in enumerate(keys):
            tell({"phase": "compile", "done": done, "total": len(keys), "unit": "programs"})
            before, began = hits.count, time.monotonic()
            lowered = program.lower(key)
            then = time.monotonic()
            memory = analyse(lowered.compile())
            if memory is not None:
                found[str(key)] = memory
            tell({"program": _told(str(key), then - began, time.monotonic() - then, hits.count > before, memory)})
        tell({"phase": "compile", "done": len(keys), "total": len(keys), "unit": "programs"})
        plan = settle(made.plan, found, held(program.abstract_state()))
        tell({"plan": msgspec.to_builtins(plan.rows)})


def _told(name: str, lower: float, compiling: float, hit: bool, memory: Any) -> Record:
    parts = ("argument", "output", "temp", "alias", "code")
    return {
        "name": name,
        "lower_seconds": lower,
        "compile_seconds": compiling,
        "from_cache": hit,
        "memory": {part: getattr(memory, part) for part in parts} if memory is not None else None,
    }


if __name__ == "__main__":
    child_main(work)
