"""Which attention an engine computes with, and why: a ladder of kernels, each tried on the device. Knows no requests.

Every kind of layer chooses for itself, but for the native kernel, which computes all or none. So do steps of single tokens,
which is what decoding is, and steps with chunks of prompts: the first rung that says it can and whose trial gives what the
reference gives. A rung that fails, by whatever exception, costs a line of the reason and nothing else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from attrs import evolve, frozen
from jax.sharding import PartitionSpec

from models.products import FP8_CAPABILITY
from models.sharding import TENSOR
from models.spec import PagedLayer
from neuron_jax.engine.attention import native
from neuron_jax.engine.attention.kv import KVFormat, LayerCache, extras
from neuron_jax.engine.attention.paged import Mix, PagedAttend
from neuron_jax.engine.attention.ragged import Ragged
from neuron_jax.engine.attention.reference import attend_blocks
from neuron_jax.engine.attention.trial import Attend, Case, Make, disagreement, tolerance

log = logging.getLogger("neuron.engine")


@frozen
class Rung:
    """A way to compute attention. `refuses` says why it cannot serve a case, with chunks or with one token per row."""

    name: str
    refuses: Callable[[Case, bool], str | None]
    make: Callable[[Case], Make]
    tried: bool = True  # the reference needs no trial
    platform: str | None = None  # of JAX's; None = any. Elsewhere it is no choice, and needs no reason


@frozen
class Pair:
    """What one kind of layer computes steps of single tokens with, and what those with chunks."""

    decode: Make
    extend: Make


@frozen
class AttentionChoice:
    """The attention of every kind of layer, over pools of `kv`. GET /models tells `name` and `reason`. With `rotates` it is
    the native kernel."""

    name: str
    reason: str
    kv: KVFormat
    kinds: Mapping[PagedLayer, Pair]
    rotates: bool = False

    def of_rows(self, rows: Ragged) -> Mapping[PagedLayer, Attend]:
        """For the rows of one step."""
        return {layer: (pair.decode if rows.single else pair.extend)(rows) for layer, pair in self.kinds.items()}


def choose(case: Case, rungs: Sequence[Rung] | None = None) -> AttentionChoice:
    """The first rung that serves decode steps and the first that serves prompt steps; the last rung serves anything."""
    ladder = RUNGS if rungs is None else rungs
    refused: list[str] = []
    if rungs is None and case.device.platform == "cpu":
        why = native.refuses(case)
        if why is None:
            log.info("attention: native")
            reason = "the kernel made for a CPU; its own tests hold it against the reference"
            pairs = {layer: Pair(make, make) for layer in case.layers for make in [partial(native.NativeAttend, layer)]}
            return AttentionChoice("native", reason, native.NativeKV(), pairs, rotates=True)
        refused = [f"native: {why}"]
    names: list[str] = []
    pairs = {}
    for layer in case.layers:
        kind = evolve(case, layers=(layer,))
        decode, not_decode = _first(kind, ladder, chunked=False)
        extend, not_extend = _first(kind, ladder, chunked=True)
        same = decode.name == extend.name
        names.append(decode.name if same else f"{decode.name} for decoding, {extend.name} for prompts")
        refused += [*not_decode, *not_extend]
        pairs[layer] = Pair(decode.make(kind), extend.make(kind))
    name = " and ".join(dict.fromkeys(names))
    reason = "; ".join(dict.fromkeys(refused)) or f"the first choice on {case.device.device_kind}"
    log.info("attention: %s (%s)", name, reason)
    return AttentionChoice(name, reason, case.kv, pairs)


def _first(case: Case, ladder: Sequence[Rung], *, chunked: bool) -> tuple[Rung, list[str]]:
    """The rung, and why those before it are not it."""
    reasons: list[str] = []
    for rung in ladder:
        if rung.platform not in {None, case.device.platform}:
            continue
        why = rung.refuses(case, chunked) or (_trial(rung, case, chunked=chunked) if rung.tried else None)
        if why is None:
            return rung, reasons
        reasons.append(f"{rung.name}: {why}")
    raise AssertionError(f"nothing computes attention: {'; '.join(reasons)}")


def _trial(rung: Rung, case: Case, *, chunked: bool) -> str | None:
    """Why `rung` will not do, by what it makes of a few rows on the device; None when it does."""
    try:
        make = rung.make(case)
        for layer in case.layers:
            off = disagreement(make, _reference(case), case, layer, chunked=chunked)
            if not off <= tolerance(case.dtype):
                return f"differs from the reference by {off:.1g} of its largest value"
    except Exception as error:  # whatever a compiler or a library says no with
        log.warning("attention %s failed its trial", rung.name, exc_info=True)
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _over_heads(mix: Mix, mesh: jax.sharding.Mesh) -> Mix:
    """`mix` on each device for its own heads: XLA cannot split a kernel that it does not know."""
    if mesh.size == 1:
        return mix
    heads, whole = PartitionSpec(None, None, TENSOR), PartitionSpec()

    def call(
        q: jax.Array,
        cache: LayerCache,
        kv: KVFormat,
        *,
        layer: PagedLayer,
        sinks: jax.Array | None = None,
        **rows: jax.Array,
    ) -> jax.Array:
        assert sinks is None, "the kernels that XLA cannot split know no sinks"

        def local(q: jax.Array, cache: LayerCache, rows: dict[str, jax.Array]) -> jax.Array:
            return mix(q, cache, kv, layer=layer, **rows)

        split = jax.shard_map(local, mesh=mesh, in_specs=(heads, heads, whole), out_specs=heads, check_vma=False)
        mixed: jax.Array = split(q, cache, rows)
        return mixed

    return call


def _mixed_by(mix: Mix, case: Case) -> Make:
    (layer,) = case.layers
    return partial(PagedAttend, mix, case.kv, layer, page_size=case.page_size)


def _reference(case: Case) -> Make:
    return _mixed_by(attend_blocks, case)


def _cudnn(case: Case) -> Make:
    from neuron_jax.engine.attention.gathered import attend_gathered

    return _mixed_by(_over_heads(partial(attend_gathered, implementation="cudnn"), case.mesh), case)


def _cudnn_refuses(case: Case, chunked: bool) -> str | None:
    if chunked:
        return "would gather a prompt's keys for every tile of it"
    if case.capability < 8:
        return "needs an NVIDIA GPU of compute capability 8.0"
    if missing := [what for layer in case.layers for what in extras(layer)]:
        return f"knows no {missing[0]}"
    if jnp.dtype(case.dtype).itemsize != 2:
        return f"computes in 16 bits, not in {jnp.dtype(case.dtype).name}"
    widest, most = max(layer.k_width for layer in case.layers), 256 if case.capability >= 9 else 128
    if widest > most or any(layer.k_width % 8 for layer in case.layers):
        return f"heads of {widest}; takes multiples of 8 up to {most}"
    return None


def _pallas(case: Case) -> Make:
    # Imported by the trial: later versions of JAX have no Triton.
    from neuron_jax.engine.attention.flash import attend_decode

    return _mixed_by(_over_heads(attend_decode, case.mesh), case)


def _pallas_refuses(case: Case, chunked: bool) -> str | None:
    if chunked:
        return "decodes only"
    if case.capability < 8:
        return "needs an NVIDIA GPU of compute capability 8.0"
    if missing := [what for layer in case.layers for what in extras(layer)]:
        return f"knows no {missing[0]}"
    if case.kv.name == "fp8" and case.capability < FP8_CAPABILITY:
        return f"reads float8 from compute capability {FP8_CAPABILITY} on"
    values = max(layer.kv_heads * layer.k_width for layer in case.layers) * (case.pages + 1) * case.page_size
    if 2**31 <= values // case.mesh.size <= 2**32 // case.kv.dtype.itemsize:
        return "a layer's pool is too large for 32-bit offsets, and too small for Pallas to use 64"
    return None


def _never_refuses(case: Case, chunked: bool) -> None:
    del case, chunked


RUNGS = (
    Rung("pallas", _pallas_refuses, _pallas, platform="gpu"),
    Rung("cudnn", _cudnn_refuses, _cudnn, platform="gpu"),
    Rung("xla", _never_refuses, _reference, tried=False),
)
"""From the fastest to the one that always works. None but the last has been timed anywhere."""
