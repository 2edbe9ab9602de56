"""Several engines' numbers as one model's: loads are summed; pure, must not know processes."""

from collections.abc import Sequence
from typing import Any

import msgspec

from neuron_jax.workers.frames import EngineLoad

COUNTERS = (
    "preemptions",
    "steps",
    "compiles",
    "prefix_lookup_tokens",
    "prefix_hit_tokens",
    "guessed_tokens",
    "right_guesses",
    "drafted_tokens",
    "right_drafts",
    "steady_compiles",
)
"""What an engine counts from its start: a model's count goes on when one of its engines is started again."""

AVERAGES = ("host_ms", "wait_ms")
NAMES = ("dropped",)


def total(loads: Sequence[EngineLoad]) -> EngineLoad:
    """The sum; of averages the highest; of names each once."""
    rows = [msgspec.structs.asdict(load) for load in loads]
    return EngineLoad(
        **{
            name: _together(name, [row[name] for row in rows])
            for name in (EngineLoad.__struct_fields__ if rows else ())
        }
    )


def _together(name: str, values: Sequence[Any]) -> Any:
    if name in NAMES:
        return tuple(sorted(set().union(*values)))
    return max(values) if name in AVERAGES else sum(values)


def counters(load: EngineLoad) -> EngineLoad:
    """Only what outlives the engine."""
    return EngineLoad(**{name: getattr(load, name) for name in COUNTERS})
