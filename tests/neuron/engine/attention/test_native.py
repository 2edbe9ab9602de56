"""The native kernel against a dense softmax in float64, and its promise: the same bits in any batch, chunk and page size."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models import rope
from models.native import library, ops
from models.nn import rotary_table, rotate
from neuron_jax.engine.attention.native import NativeAttend
from tests.fakes.paged_case import PagedCase, paged_case

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")


def attended(case: PagedCase) -> np.ndarray:
    """What the kernel makes of the step's new tokens, [R, C, K, G, H]; zeros for padding."""
    keys, values = case.cache
    pool = jnp.asarray(keys.transpose(0, 2, 3, 1)), jnp.asarray(values.transpose(0, 2, 1, 3))
    flat = [jnp.asarray(case.flat(part)) for part in (case.q, case.k, case.v)]
    sinks = None if case.sinks is None else jnp.asarray(case.sinks)
    mixed, (new_keys, new_values) = NativeAttend(case.layer, case.ragged(pad=0))(*flat, pool, sinks)
    # The case's pool holds the new tokens already: writing them again must change nothing.
    assert np.array_equal(new_keys, pool[0])
    assert np.array_equal(new_values, pool[1])
    found = np.zeros_like(case.exact, np.float32)
    found[case.real] = np.asarray(mixed)
    return found


@pytest.mark.parametrize("window", [None, 5, 100, 130])
@pytest.mark.parametrize("chunk", [1, 24, 150])
@pytest.mark.parametrize("heads", [(2, 3, 16), (1, 8, 64), (3, 1, 80), (2, 4, 128), (1, 6, 96)])
def test_it_is_dense_attention(heads: tuple[int, int, int], chunk: int, window: int | None) -> None:
    lengths = [1, 15, 16, 17, 127, 128, 129, 300, 512, 0]
    case = paged_case(lengths, chunk=chunk, heads=heads, window=window)
    found = attended(case)
    assert np.abs(found[case.real] - case.exact[case.real]).max() < 1e-4


EXTRAS: dict[str, dict[str, Any]] = {
    "a soft cap": {"soft_cap": 1.5},
    "sinks": {"sinks": True},
    "narrower values": {"v_width": 16},
    "aligned windows": {"window": 70, "aligned": True},
    "all of it behind a window": {"soft_cap": 1.5, "sinks": True, "v_width": 16, "window": 100},
}


@pytest.mark.parametrize("chunk", [1, 150])
@pytest.mark.parametrize("heads", [(2, 3, 32), (1, 40, 48)])
@pytest.mark.parametrize("extra", EXTRAS)
def test_what_families_differ_in_is_data(extra: str, heads: tuple[int, int, int], chunk: int) -> None:
    """The second shape is that of a latent: one head of many queries, keys wider than values."""
    case = paged_case([1, 17, 128, 300, 0], chunk=chunk, heads=heads, **EXTRAS[extra])
    found = attended(case)

    assert np.abs(found[case.real] - case.exact[case.real]).max() < 1e-4


@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize("chunk", [1, 40])
def test_norms_rotation_and_scale_come_before(chunk: int, turns: bool) -> None:
    """As XLA computes them between a product and `Mixer.attend`, for queries of any kv head and for keys."""
    case = paged_case([40, 129], chunk=chunk, heads=(2, 3, 32), soft_cap=3.0, sinks=True)
    rng = np.random.default_rng(2)
    rows, layer = case.ragged(pad=0), case.layer
    qkv = jnp.asarray(rng.standard_normal((rows.row.shape[0], 2, 5, 32)).astype(np.float32))
    weights = [rng.uniform(0.5, 2, 32).astype(np.float32) for _ in range(2)]
    turn = rotary_table(rows.position, rope.frequencies(32, 100.0, {})) if turns else None
    pool = tuple(
        jnp.asarray(part) for part in (case.cache[0].transpose(0, 2, 3, 1), case.cache[1].transpose(0, 2, 1, 3))
    )
    attend, sinks = NativeAttend(layer, rows), jnp.asarray(case.sinks)
    norms = (ops.Norm(jnp.asarray(weights[0]), 1e-5), ops.Norm(jnp.asarray(weights[1]), 1e-5))
    found, kept = attend.rotated(qkv, turn, pool, scale=0.3, norms=norms, sinks=sinks)

    parts = (np.asarray(part) for part in (qkv[:, :, :3], qkv[:, :, 3:4]))
    normed = (x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w for x, w in zip(parts, weights, strict=True))
    q, k = (jnp.asarray(part) if turn is None else rotate(jnp.asarray(part), turn) for part in normed)
    wanted, stored = attend(q * 0.3, k[:, :, 0], qkv[:, :, 4], pool, sinks)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for one, other in zip(kept, stored, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("sink", [None, -2000.0, 2000.0])
@pytest.mark.parametrize("chunk", [1, 40])
def test_scores_may_lie_far_apart(chunk: int, sink: float | None) -> None:
    """Hundreds from each other, from segment to segment and from the sink: weights beyond float32's range are zero."""
    case = paged_case([300], chunk=chunk, heads=(2, 3, 32), sinks=sink is not None)
    sinks = None if sink is None else np.full((2, 3), sink, np.float32)
    far = evolve(case, q=100 * case.q, sinks=sinks)
    keys, values = (
        np.stack([leaf[case.table[0, p // 16], p % 16] for p in range(300)]).astype(np.float64) for leaf in case.cache
    )
    wanted = np.zeros_like(case.exact)
    for i in range(chunk):
        seen = 301 - chunk + i
        scores = np.einsum("kgh,pkh->kgp", far.q[0, i].astype(np.float64), keys[:seen])
        top = np.maximum(scores.max(-1, keepdims=True), -np.inf if sink is None else sink)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink - top))
        wanted[0, i] = np.einsum("kgp,pkh->kgh", weights / total, values[:seen])
    assert np.abs(attended(far) - wanted).max() < 2e-3


@pytest.mark.parametrize("extra", [None, "all of it behind a window"])
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_a_tokens_bits_depend_on_its_own_past_alone(page_size: int, extra: str | None) -> None:
    """500 tokens in one chunk, and in chunks of 1, of 7 and of 60."""
    kind: dict[str, Any] = {"heads": (2, 3, 32), "most": 512} | EXTRAS.get(extra or "", {})
    whole = attended(paged_case([500], chunk=500, page_size=16, **kind))[0]
    for chunk in (1, 7, 60):
        case = paged_case([500], chunk=chunk, page_size=page_size, **kind)
        ours = same_text(case, paged_case([500], chunk=500, page_size=16, **kind), page_size)
        assert np.array_equal(attended(ours)[0], whole[-chunk:]), chunk


def same_text(case: PagedCase, whole: PagedCase, page_size: int) -> PagedCase:
    """`case` with the last tokens of `whole`, which has all of one row's in its only chunk."""
    chunk = case.q.shape[1]
    keys, values = (np.array(leaf) for leaf in case.cache)
    for position in range(whole.q.shape[1]):
        page = case.table[0, position // page_size]
        keys[page, position % page_size] = whole.k[0, position]
        values[page, position % page_size] = whole.v[0, position]
    new = {name: getattr(whole, name)[:, -chunk:] for name in ("q", "k", "v")}
    return evolve(case, cache=(keys, values), sinks=whole.sinks, **new)


@pytest.mark.parametrize("kind", [{}, {"window": 40}, {"soft_cap": 1.5, "sinks": True, "v_width": 16}], ids=str)
@pytest.mark.parametrize("chunk", [1, 30])
def test_rows_beside_each_other_get_what_each_gets_alone(chunk: int, kind: dict[str, Any]) -> None:
    """Single tokens and chunks stand side by side: of the rows with 1 and 17 tokens all are new."""
    case = paged_case([300, 17, 512, 128, 1], chunk=chunk, heads=(2, 3, 32), **kind)
    together = attended(case)
    for row in range(5):
        part = slice(row, row + 1)
        names = ("q", "k", "v", "table", "start", "count", "exact")
        alone = evolve(case, **{name: getattr(case, name)[part] for name in names})
        assert np.array_equal(attended(alone)[0], together[row]), row
