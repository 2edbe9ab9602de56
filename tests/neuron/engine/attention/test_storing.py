"""The kernel that turns and stores a step's tokens, in Pallas' interpreter, against what XLA makes of them."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.native.ops import Norm
from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine.attention import storing
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.storing import by_xla
from neuron_jax.engine.attention.trial import Case
from neuron_jax.engine.attention.turned import Heads
from neuron_jax.engine.trials import Verdict

kernel = pytest.importorskip("neuron_jax.engine.attention.store", reason="this JAX has no Triton", exc_type=ImportError)
PAGE = 16


def case(layer: PagedLayer, kv: str = "float32", dtype: Any = jnp.float32) -> Case:
    return Case(make_mesh(jax.devices("cpu")[:1]), dtype, KVFormat(kv), 5, PAGE, (layer,))


@pytest.mark.parametrize(
    ("heads", "normed", "turns", "dtype"),
    [
        ((2, 4, 64), True, True, jnp.float32),
        ((1, 5, 80), False, True, jnp.bfloat16),
        ((2, 1, 32), True, False, jnp.bfloat16),
        ((1, 8, 96), False, False, jnp.float32),
    ],
)
def test_tokens_are_turned_and_stored(heads: tuple[int, int, int], normed: bool, turns: bool, dtype: Any) -> None:
    """At the ends of pages; padding leaves zeros in the trash page, and nothing else of the pool changes."""
    kv_heads, group, width = heads
    rng = np.random.default_rng(4)
    qkv = jnp.asarray(rng.standard_normal((4, kv_heads, group + 2, width)), dtype)
    norms = tuple(Norm(jnp.asarray(rng.random(width), jnp.float32), eps) for eps in (1e-5, 1e-2)) if normed else None
    rotary = tuple(jnp.asarray(rng.standard_normal((4, width // 2)), jnp.float32) for _ in "cs") if turns else None
    pool = tuple(jnp.asarray(rng.standard_normal((6, PAGE, kv_heads, width)), dtype) for _ in "kv")
    places = {
        "page": jnp.asarray([1, 5, 0, 3], jnp.int32),
        "offset": jnp.asarray([PAGE - 1, 0, 7, 3], jnp.int32),
        "real": jnp.asarray([True, True, False, True]),
    }
    given = (qkv, rotary, pool, Heads(0.125, norms))  # type: ignore[arg-type]
    got, wanted = (
        jax.tree.leaves(way(*given, **places))
        for way in (partial(kernel.store, interpret=True), by_xla(KVFormat(jnp.dtype(dtype).name)))
    )

    for ours, theirs in zip(got, wanted, strict=True):
        near = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.03, "atol": 0.03}
        np.testing.assert_allclose(np.asarray(ours, np.float32), np.asarray(theirs, np.float32), **near)
    assert not np.asarray(got[1], np.float32)[0, 7].any()


@pytest.mark.parametrize(
    ("layer", "kv", "values", "why"),
    [
        (PagedLayer(2, 4, 64, 64), "bfloat16", 1, None),
        (PagedLayer(2, 4, 64, 32), "bfloat16", 1, "of one even width"),
        (PagedLayer(2, 4, 64, 64), "int8", 1, "rounds nothing to int8"),
        (PagedLayer(2, 4, 64, 64), "bfloat16", 2**31, "32-bit"),
    ],
)
def test_what_it_was_not_made_for_is_refused(layer: PagedLayer, kv: str, values: int, why: str | None) -> None:
    refused = kernel.refuses(layer, KVFormat(kv), values)

    assert refused is None if why is None else why in str(refused)


def test_a_trial_tells_right_from_wrong() -> None:
    def scaled(qkv: Any, rotary: Any, cache: Any, heads: Heads, **places: jax.Array) -> Any:
        return by_xla(KVFormat("float32"))(qkv, rotary, cache, Heads(1.0, heads.norms), **places)

    def broken(*given: Any, **places: jax.Array) -> Any:
        raise RuntimeError("INTERNAL: out of registers")

    given = case(PagedLayer(2, 3, 32, 32))
    assert storing.problem(partial(kernel.store, interpret=True), given) is None
    assert "differs by" in str(storing.problem(scaled, given))
    assert storing.problem(broken, given) == "RuntimeError: INTERNAL: out of registers"


def test_a_cpu_has_no_use_for_it() -> None:
    assert storing.choose(case(PagedLayer(2, 3, 32, 32)), tried=False) == {}


def test_each_layer_that_it_was_made_for_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, in another process."""
    card = SimpleNamespace(platform="gpu", compute_capability="8.6")
    mesh: Any = SimpleNamespace(size=1, devices=np.array([card], object))
    layers = (PagedLayer(2, 4, 64, 64), PagedLayer(2, 4, 64, 32), PagedLayer(2, 2, 64, 64))
    given = evolve(case(layers[0], "bfloat16", jnp.bfloat16), mesh=mesh, layers=layers)
    monkeypatch.setattr(
        storing.trials, "tried", lambda asked, device: [Verdict(), Verdict("differs by 1")][: len(asked)]
    )

    assert list(storing.choose(given, tried=True)) == [layers[0]]
    assert list(storing.choose(given, tried=False)) == [layers[0], layers[2]]


def test_two_devices_store_their_own_heads() -> None:
    """With norms, and as one device stores all of them."""
    rng = np.random.default_rng(6)
    mesh, width = make_mesh(jax.devices("cpu")[:2]), 32
    qkv = jnp.asarray(rng.standard_normal((3, 4, 4, width)), jnp.float32)
    norms = tuple(Norm(jnp.asarray(rng.random(width), jnp.float32), eps) for eps in (1e-5, 1e-2))
    rotary = tuple(jnp.asarray(rng.standard_normal((3, width // 2)), jnp.float32) for _ in "cs")
    pool = tuple(jnp.asarray(rng.standard_normal((4, PAGE, 4, width)), jnp.float32) for _ in "kv")
    places = {name: jnp.asarray([1, 3, 0], jnp.int32) for name in ("page", "offset")} | {"real": jnp.ones(3, jnp.bool_)}
    given = (qkv, rotary, pool, Heads(0.125, norms))  # type: ignore[arg-type]
    one = partial(kernel.store, interpret=True)
    got, wanted = (jax.tree.leaves(way(*given, **places)) for way in (storing.over(mesh, one), one))

    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
