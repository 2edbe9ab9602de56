"""Several engines' numbers as one model's: loads are summed, states joined; pure, must not know processes."""

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import msgspec

from neuron_jax.workers.frames import EngineLoad
from neuron_jax.workers.supervisor import EngineState, Phase

COUNTERS = (
    "preemptions",
    "steps",
    "compiles",
    "prefix_lookup_tokens",
    "prefix_hit_tokens",
    "guessed_tokens",
    "right_guesses",
    "steady_compiles",
)
"""What an engine counts from its start: a model's count goes on when one of its engines is started again."""

AVERAGES = ("host_ms", "wait_ms")
NAMES = ("dropped",)
BEST_FIRST = (Phase.READY, Phase.DRAINING, Phase.RECOVERING, Phase.STARTING, Phase.FAILED, Phase.STOPPED)
"""A model is in the first of these that one of its engines is in."""


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


def joined(states: Iterable[EngineState]) -> EngineState:
    """The model's: its best phase, all restarts, and the error of the engine that has most to complain of."""
    found = sorted(states, key=lambda state: BEST_FIRST.index(state.phase))
    if not found:
        return EngineState()
    worst = max(found, key=lambda state: (state.last_error is not None, BEST_FIRST.index(state.phase)))
    return attrs.evolve(
        found[0], restarts=sum(state.restarts for state in found), last_error=worst.last_error, kind=worst.kind
    )
