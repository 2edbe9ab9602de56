"""Which recurrent layers are computed by one GPU kernel: those where it gives what XLA gives. Knows no requests."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import attrs
import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen
from jax.sharding import Mesh

from models.dense.convolution import ConvolutionRule
from models.dense.delta import DeltaRule
from models.dense.mamba import MambaRule, Together
from models.native.ops import Norm
from models.native.recurrent import FOLLOWS, StateRows
from models.spec import Model, ParamSpec, Recurrence, RecurrentLayer
from neuron_jax.engine import recurrent, trials
from neuron_jax.engine.attention.ragged import ragged
from neuron_jax.engine.attention.trial import tolerance
from neuron_jax.engine.trials import Trial, Verdict

log = logging.getLogger("neuron.engine")

START = (0, 9, 4, 6, 7, 8, 0)
COUNT = (7, 1, 21, 1, 1, 1, 0)
LOAD = (0, 0, 2, 0, FOLLOWS, FOLLOWS, 0)
SAVE = (1, 0, 3, 0, 4, 5, 0)
"""Of the rows of a trial: one begins its text, two go on, one begins with a snapshot, two follow another, one is padding."""

SPARE, PAGE = 2, 4

RECORDS = {record.__name__: record for record in (ConvolutionRule, DeltaRule, MambaRule, Norm, Together)}
"""Of which rules consist."""


class Recur(Protocol):
    """Goes through a layer's states by `rule`: see `models.spec.Recurrence.on_gpu`."""

    def __call__(self, rule: Recurrence, inputs: Any, cache: Any, rows: StateRows) -> tuple[Any, Any]: ...


Recurring = Mapping[RecurrentLayer, Recur]
"""The layers that a kernel goes through."""


@frozen
class Seen:
    """A layer's rule and what a token brings it, with shapes in the place of arrays; and how many numbers the largest array of
    its states has, of all slots or snapshots."""

    rule: Any
    token: Any
    largest: int


Rules = Mapping[RecurrentLayer, Seen]


def by_kernel(
    rule: Recurrence, inputs: Any, cache: Any, rows: StateRows, *, mesh: Mesh | None = None, interpret: bool = False
) -> tuple[Any, Any]:
    """The kernel."""
    return rule.on_gpu(inputs, cache, rows, mesh=mesh, interpret=interpret)


def rules_in(model: Model, trace: Callable[[Recurring], object]) -> Rules:
    """Of each kind of recurrent layer the rule by which `trace` goes through it."""
    seen: dict[RecurrentLayer, Seen] = {}

    def note(layer: RecurrentLayer, rule: Recurrence, inputs: Any, cache: Any, rows: StateRows) -> tuple[Any, Any]:
        del rows
        token = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs)
        seen[layer] = Seen(_with(_shape, rule), token, max(leaf.size for leaf in cache))
        one = tuple(state[0] for state in cache[: len(cache) // 2])
        first = jax.tree.map(lambda leaf: leaf[0], inputs)
        given = jax.eval_shape(rule.step, one, first)[1]
        count = jax.tree.leaves(inputs)[0].shape[0]
        return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), given), cache

    kinds = dict.fromkeys(layer for layer in model.layers if isinstance(layer, RecurrentLayer))
    trace({layer: partial(note, layer) for layer in kinds})
    return seen


def choose(device: Any, rules: Rules, *, tried: bool, mesh: Mesh | None = None) -> Recurring:
    """None where XLA does it all, as where there is no GPU from Ampere on. Kernels are tried in another process, where they are
    to be `tried`, for all heads: what a program makes of one does not depend on how many there are. On a `mesh` each device has
    some.
    """
    if device.platform != "gpu" or float(device.compute_capability) < 8:
        return {}
    try:  # later versions of JAX have no Triton
        from models import recurrent_rows
    except ImportError:
        return {}
    devices = 1 if mesh is None else mesh.size
    why = {layer: recurrent_rows.refuses(layer.state, seen.largest // devices) for layer, seen in rules.items()}
    able = [layer for layer, refused in why.items() if refused is None]
    if tried:
        asked = [Trial("recurring", _told(layer, rules[layer])) for layer in able]
        why |= {layer: one.why for layer, one in zip(able, trials.tried(asked, device), strict=True)}
    for layer, refused in why.items():
        if refused is not None:
            trials.say("states of %s are XLA's: %s", layer, refused)
    kernel = by_kernel if mesh is None else partial(by_kernel, mesh=mesh)
    return {layer: kernel for layer, refused in why.items() if refused is None}


def verdict(asked: Mapping[str, Any], device: Any) -> Verdict:
    """On the kernel for a layer that another process asked to have tried here, on its default device."""
    del device
    why = problem(by_kernel, *_asked(asked))
    return Verdict(why, final=why is None or why.startswith("differs"))


def _told(layer: RecurrentLayer, seen: Seen) -> dict[str, Any]:
    """What a trial must know, as values of JSON."""
    state = [list(leaf.shape) for leaf in layer.state]
    return {"state": state, "rule": _as_json(seen.rule), "token": _as_json(seen.token)}


def _asked(told: Mapping[str, Any]) -> tuple[RecurrentLayer, Seen]:
    """The inverse of `_told`, but for what a trial does not look at."""
    state = tuple(ParamSpec(tuple(shape), np.dtype(np.float32), (None,) * len(shape)) for shape in told["state"])
    return RecurrentLayer(state), Seen(_of_json(told["rule"]), _of_json(told["token"]), 0)


def _as_json(part: Any) -> Any:
    if attrs.has(type(part)):
        named = {field.name: _as_json(getattr(part, field.name)) for field in attrs.fields(type(part))}
        return {"record": type(part).__name__, **named}
    if isinstance(part, tuple):
        return [_as_json(one) for one in part]
    return {"shape": list(part.shape), "dtype": np.dtype(part.dtype).name} if hasattr(part, "shape") else part


def _of_json(told: Any) -> Any:
    match told:
        case {"record": name, **fields}:
            return RECORDS[name](**{str(field): _of_json(value) for field, value in fields.items()})
        case {"shape": shape, "dtype": dtype}:
            return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        case list():
            return tuple(map(_of_json, told))
    return told


def problem(kernel: Recur, layer: RecurrentLayer, seen: Seen) -> str | None:
    """Why `kernel` will not do for one kind of layer; None when it does."""
    try:
        rule, inputs, cache = _some(layer, seen)
        got, wanted = (jax.jit(partial(_step, way, rule))(inputs, cache) for way in (kernel, None))
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            wide = np.asarray(theirs, np.float32)
            off = float(np.abs(np.asarray(ours, np.float32) - wide).max() / np.abs(wide).max())
            if not off <= tolerance(theirs.dtype):
                return f"differs by {off:.1g} of the largest value"
    except Exception as error:  # whatever a compiler says no with
        log.warning("the kernel that goes through states failed its trial", exc_info=True)
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _step(kernel: Recur | None, rule: Recurrence, inputs: Any, cache: Any) -> tuple[Any, Any]:
    """The rows of the trial; by XLA where there is no kernel. What stands in trash is left out."""
    slots = [number for number, load in enumerate(LOAD) if load != FOLLOWS]
    slot, start, count, load, save = (
        jnp.asarray(told, jnp.int32)
        for told in ([max(one for one in slots if one <= row) for row in range(len(LOAD))], START, COUNT, LOAD, SAVE)
    )
    rows = ragged({}, slot, start, count, sum(COUNT) + SPARE)
    snapshots = recurrent.Snapshots(load, save, PAGE, guesses=True)
    if kernel is None:
        given, cache = recurrent.recur(rule, inputs, cache, rows, snapshots)
    else:
        given, cache = kernel(rule, inputs, cache, recurrent.state_rows(rows, snapshots))
    half = len(cache) // 2
    return given[: sum(COUNT)], (*(state[:-1] for state in cache[:half]), *(kept[1:] for kept in cache[half:]))


def _some(layer: RecurrentLayer, seen: Seen) -> tuple[Any, Any, Any]:
    """A rule, what tokens bring, and states, of random values; those of the rule below 0, as rates must be."""
    rng = np.random.default_rng(0)
    specs = recurrent.state_specs(layer, slots=len(START), snapshots=max(SAVE))
    rule = _with(lambda leaf: jnp.asarray(-rng.random(leaf.shape), leaf.dtype), seen.rule)
    total = sum(COUNT) + SPARE
    inputs = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal((total, *leaf.shape)), leaf.dtype), seen.token)
    return rule, inputs, tuple(jnp.asarray(rng.standard_normal(spec.shape), spec.dtype) for spec in specs)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _with(make: Callable[[Any], Any], part: Any) -> Any:
    """A record with `make` (array) in the place of each of its arrays."""
    if attrs.has(type(part)):
        return attrs.evolve(
            part, **{field.name: _with(make, getattr(part, field.name)) for field in attrs.fields(type(part))}
        )
    if isinstance(part, tuple) and not hasattr(part, "shape"):
        return tuple(_with(make, one) for one in part)
    return make(part) if hasattr(part, "shape") else part
