"""Which attention an engine computes with, and why: a ladder of kernels, each tried on the device. Knows no requests.

Every kind of layer chooses for itself, but for the native kernel, which computes all or none: the first rung that says it can
and whose trial gives what the reference gives. A rung that fails, by whatever exception, costs a line of the reason and
nothing else. On a GPU another process tries it (`trials.py`).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import evolve, frozen

from models.errors import ModelError
from models.spec import PagedLayer
from neuron_jax.engine.attention import native
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.paged import PagedAttend
from neuron_jax.engine.attention.ragged import Ragged
from neuron_jax.engine.attention.reference import attend_blocks
from neuron_jax.engine.attention.trial import Attend, Case, Make, case_of, disagreement, told, tolerance
from neuron_jax.engine.trials import Trial, Verdict, say, tried

log = logging.getLogger("neuron.engine")


@frozen
class Rung:
    """A way to compute attention. `refuses` says why it cannot serve a case."""

    name: str
    refuses: Callable[[Case], str | None]
    make: Callable[[Case], Make]
    tried: bool = True  # the reference needs no trial
    platform: str | None = None  # of JAX's; None = any. Elsewhere it is no choice, and needs no reason


@frozen
class AttentionChoice:
    """The attention of every kind of layer, over pools of `kv`. GET /models tells `name` and `reason`. With `rotates` it is
    the native kernel."""

    name: str
    reason: str
    kv: KVFormat
    kinds: Mapping[PagedLayer, Make]
    rotates: bool = False

    def of_rows(self, rows: Ragged) -> Mapping[PagedLayer, Attend]:
        """For the rows of one step."""
        return {layer: make(rows) for layer, make in self.kinds.items()}


def choose(case: Case, rungs: Sequence[Rung] | None = None, *, asked: str = "auto") -> AttentionChoice:
    """The first rung that serves; the last serves anything. What was `asked` for by name is neither refused nor tried.

    Raises ModelError where there is none of that name for the device.
    """
    ladder = RUNGS if rungs is None else rungs
    refused: list[str] = []
    if rungs is None and case.device.platform == "cpu" and asked in {"auto", "native"}:
        why = native.refuses(case)
        if why is None:
            log.info("attention: native")
            reason = "the kernel made for a CPU; its own tests hold it against the reference"
            kinds: dict[PagedLayer, Make] = {layer: partial(native.NativeAttend, layer) for layer in case.layers}
            return AttentionChoice("native", reason, native.NativeKV(), kinds, rotates=True)
        refused = [f"native: {why}"]
    if asked != "auto":
        ladder = [evolve(_named(asked, case, ladder, refused), tried=False, refuses=_never_refuses)]
    names: list[str] = []
    kinds = {}
    for layer in case.layers:
        kind = evolve(case, layers=(layer,))
        rung, reasons = _first(kind, ladder)
        names.append(rung.name)
        refused += reasons
        kinds[layer] = rung.make(kind)
    name = " and ".join(dict.fromkeys(names))
    first = f"the first choice on {case.device.device_kind}" if asked == "auto" else "as asked"
    reason = "; ".join(dict.fromkeys(refused)) or first
    say("attention: %s (%s)", name, reason)
    return AttentionChoice(name, reason, case.kv, kinds)


def _named(name: str, case: Case, ladder: Sequence[Rung], refused: Sequence[str]) -> Rung:
    there = {rung.name: rung for rung in ladder if rung.platform in {None, case.device.platform}}
    if name not in there:
        why = "; ".join(refused) or f"on {case.device.device_kind} there is {', '.join(there)}"
        raise ModelError(f"attention {name!r}", [why])
    return there[name]


def _first(case: Case, ladder: Sequence[Rung]) -> tuple[Rung, list[str]]:
    """The rung, and why those before it are not it."""
    reasons: list[str] = []
    for rung in ladder:
        if rung.platform not in {None, case.device.platform}:
            continue
        why = rung.refuses(case) or (_tried(rung, case) if rung.tried else None)
        if why is None:
            return rung, reasons
        reasons.append(f"{rung.name}: {why}")
    raise AssertionError(f"nothing computes attention: {'; '.join(reasons)}")


def _tried(rung: Rung, case: Case) -> str | None:
    if case.device.platform != "gpu":
        return trial(rung, case)
    (verdict,) = tried([Trial("attention", {"rung": rung.name, **told(case)}, {"pages": case.pages})], case.device)
    return verdict.why


def verdict(asked: Mapping[str, Any], device: Any) -> Verdict:
    """On the rung that another process asked to have tried here. An exception may be one of this day's."""
    why = trial(next(rung for rung in RUNGS if rung.name == asked["rung"]), case_of(asked, device))
    return Verdict(why, final=why is None or why.startswith("differs"))


def trial(rung: Rung, case: Case) -> str | None:
    """Why `rung` will not do, by what it makes of a few rows on the device; None when it does."""
    try:
        make = rung.make(case)
        for layer in case.layers:
            for chunked in (False, True):
                off = disagreement(make, _reference(case), case, layer, chunked=chunked)
                if not off <= tolerance(case.dtype):
                    return f"differs from the reference by {off:.1g} of its largest value"
    except Exception as error:  # whatever a compiler or a library says no with
        log.warning("attention %s failed its trial", rung.name, exc_info=True)
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _reference(case: Case) -> Make:
    (layer,) = case.layers
    return partial(PagedAttend, attend_blocks, case.kv, layer, page_size=case.page_size)


def _pallas(case: Case) -> Make:
    # Imported by the trial: later versions of JAX have no Triton.
    from neuron_jax.engine.attention import pallas

    return partial(pallas.make, case)


def _pallas_refuses(case: Case) -> str | None:
    if case.capability < 8:
        return "needs an NVIDIA GPU of compute capability 8.0"
    values = max(layer.kv_heads * layer.k_width for layer in case.layers) * (case.pages + 1) * case.page_size
    if 2**31 <= values // case.mesh.size <= 2**32 // case.kv.dtype.itemsize:
        return "a layer's pool is too large for 32-bit offsets, and too small for Pallas to use 64"
    return None


def _never_refuses(case: Case) -> None:
    del case


RUNGS = (
    Rung("pallas", _pallas_refuses, _pallas, platform="gpu"),
    Rung("xla", _never_refuses, _reference, tried=False),
)
"""From the fastest to the one that always works. None but the last has been timed anywhere."""
