"""When a process or a step counts as hung: arithmetic on its signs of life; knows no clock, no process, no JAX."""

from attrs import frozen

from neuron_jax.workers.frames import EngineSpec, Pulse

PATIENCE = 20
"""How many times its usual time a step may take: a machine that is busy with something else is slow, not broken."""

START_PATIENCE = 6
"""How many times as long a process may be silent while it loads: imports, drivers and compilers can keep the interpreter
to themselves for a while, and other engines start beside it."""


@frozen
class Hung:
    """Why a process must go: one of the kinds of `workers.faults`, and words for whoever waits for it."""

    kind: str
    words: str


def allowed(spec: EngineSpec, usual: float) -> float:
    """Seconds for a step that usually takes `usual`; 0 = it has not run yet."""
    return max(spec.step_seconds, PATIENCE * usual) if usual else max(spec.step_seconds, spec.first_seconds)


def judge(spec: EngineSpec, pulse: Pulse, silent: float, *, serving: bool) -> Hung | None:
    """What to hold of a process whose last sign of life, `silent` seconds ago, was `pulse`; None while it may go on."""
    patience = spec.silent_seconds * (1 if serving else START_PATIENCE)
    if silent > patience:
        return Hung("rank_silent", f"said nothing for {silent:.0f} s: it was stopped, or hangs beyond its own notice")
    if 0 < pulse.allowed < pulse.busy:
        return Hung("step_timeout", f"took over {pulse.allowed:.0f} s for {pulse.what}: it hangs")
    return None
