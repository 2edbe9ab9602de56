"""For which layers one kernel rotates and stores a step's keys and values: where it gives what XLA gives. Knows no requests."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from attrs import evolve
from jax.sharding import PartitionSpec

from models.native.ops import Norm
from models.sharding import TENSOR
from models.spec import PagedLayer
from neuron_jax.engine import trials
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.trial import Case, case_of, told, tolerance
from neuron_jax.engine.attention.turned import Heads, Rotary, turned
from neuron_jax.engine.trials import Trial, Verdict

log = logging.getLogger("neuron.engine")

TOKENS, PAGES = 5, 3
"""Of a trial."""


class Store(Protocol):
    """Turns and stores the tokens of a step: see `store.store`."""

    def __call__(
        self,
        qkv: jax.Array,
        rotary: Rotary,
        cache: LayerCache,
        heads: Heads,
        *,
        page: jax.Array,
        offset: jax.Array,
        real: jax.Array,
    ) -> tuple[jax.Array, LayerCache]: ...


Storing = Mapping[PagedLayer, Store]
"""The layers whose tokens are stored by a kernel."""


def choose(case: Case, *, tried: bool) -> Storing:
    """None where XLA does it all: where there is no GPU from Ampere on. Kernels are tried in another process, where they are to
    be `tried`, with what one device has of a layer."""
    if case.capability < 8:
        return {}
    try:  # later versions of JAX have no Triton
        from neuron_jax.engine.attention import store
    except ImportError:
        return {}
    tokens, devices = (case.pages + 1) * case.page_size, case.mesh.size
    own = {layer: evolve(layer, kv_heads=layer.kv_heads // devices) for layer in case.layers}
    why = {layer: store.refuses(one, case.kv, one.kv_heads * one.k_width * tokens) for layer, one in own.items()}
    able = [layer for layer, refused in why.items() if refused is None]
    if tried:
        asked = [Trial("storing", told(evolve(case, layers=(own[layer],))), {"pages": case.pages}) for layer in able]
        why |= {layer: one.why for layer, one in zip(able, trials.tried(asked, case.device), strict=True)}
    for layer, refused in why.items():
        if refused is not None:
            trials.say("keys and values of %s are stored by XLA: %s", layer, refused)
    kernel = store.store if devices == 1 else over(case.mesh, store.store)
    return {layer: kernel for layer, refused in why.items() if refused is None}


def over(mesh: jax.sharding.Mesh, store: Store) -> Store:
    """`store` on every device of `mesh` for its own heads: XLA cannot split what it does not know."""
    of_heads, of_pages, whole = PartitionSpec(None, TENSOR), PartitionSpec(None, None, TENSOR), PartitionSpec()

    def stored(
        qkv: jax.Array, rotary: Rotary, cache: LayerCache, heads: Heads, **places: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        weights = None if heads.norms is None else tuple(norm.weight for norm in heads.norms)

        def local(qkv: jax.Array, rotary: Any, cache: Any, weights: Any, places: Any) -> Any:
            norms = None
            if heads.norms is not None:
                q, k = (evolve(norm, weight=weight) for norm, weight in zip(heads.norms, weights, strict=True))
                norms = (q, k)
            return store(qkv, rotary, cache, Heads(heads.scale, norms), **places)

        specs = (of_heads, whole, (of_pages,) * len(cache), whole, whole)
        out = (of_heads, (of_pages,) * len(cache))
        on_each = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
        found: tuple[jax.Array, LayerCache] = on_each(qkv, rotary, cache, weights, places)
        return found

    return stored


def verdict(asked: Mapping[str, Any], device: Any) -> Verdict:
    """On the kernel for a layer that another process asked to have tried here. An exception may be one of this day's."""
    from neuron_jax.engine.attention import store

    why = problem(store.store, case_of(asked, device))
    return Verdict(why, final=why is None or why.startswith("differs"))


def by_xla(kv: KVFormat) -> Store:
    """The twin of the kernels."""

    def stored(
        qkv: jax.Array, rotary: Rotary, cache: LayerCache, heads: Heads, **places: jax.Array
    ) -> tuple[jax.Array, LayerCache]:
        q, k, v = turned(qkv, rotary, heads)
        return q, kv.write(cache, k, v, **places)

    return stored


def problem(kernel: Store, case: Case) -> str | None:
    """Why `kernel` will not do for the one kind of layer of `case`; None when it does."""
    try:
        given, places = _inputs(case)
        got, wanted = (jax.jit(partial(_step, way))(given, places) for way in (kernel, by_xla(case.kv)))
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            wide = np.asarray(theirs.astype(jnp.float32))
            off = float(np.abs(np.asarray(ours.astype(jnp.float32)) - wide).max() / np.abs(wide).max())
            if not off <= tolerance(case.dtype):
                return f"differs by {off:.1g} of the largest value"
    except Exception as error:  # whatever a compiler says no with
        log.warning("the kernel that stores keys and values failed its trial", exc_info=True)
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return None


def _step(way: Store, given: dict[str, Any], places: dict[str, jax.Array]) -> tuple[jax.Array, LayerCache]:
    width = given["qkv"].shape[-1]
    norms = (Norm(given["norms"][0, :width], 1e-5), Norm(given["norms"][1, :width], 1e-6))
    return way(given["qkv"], given["turns"], given["cache"], Heads(0.1, norms), **places)


def _inputs(case: Case) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Tokens with all that a layer may have, for a small pool; one of them is padding."""
    (layer,) = case.layers
    rng = np.random.default_rng(0)
    shape = (TOKENS, layer.kv_heads, layer.group + 2, layer.k_width)
    angle = jnp.asarray(rng.standard_normal((TOKENS, layer.k_width // 2)), jnp.float32)
    pools = case.kv.pool(layer, pages=PAGES, page_size=case.page_size)
    given = {
        "qkv": jnp.asarray(rng.standard_normal(shape), case.dtype),
        "turns": (jnp.cos(angle), jnp.sin(angle)),
        "norms": jnp.asarray(rng.random((2, layer.k_width)), jnp.float32),
        "cache": tuple(jnp.ones(pool.shape, pool.dtype) for pool in pools),
    }
    last = case.page_size - 1
    return given, {
        "page": jnp.asarray([1, 3, 0, 3, 2], jnp.int32),
        "offset": jnp.asarray([0, last, 1, 0, 1], jnp.int32),
        "real": jnp.asarray([True, True, False, True, True]),
    }
