"""Steps that store their tokens and attend, against a dense softmax in float64: lengths, windows, padding, dirt."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.paged import PagedAttend
from neuron_jax.engine.attention.ragged import ragged
from neuron_jax.engine.attention.ragged import table as pages_of
from neuron_jax.engine.attention.reference import BLOCK, attend_blocks
from tests.fakes.params import slow_but

PAGE, K, G, H = 16, 2, 3, 8
W = 4 * BLOCK // PAGE


def dense(q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int, window: int | None) -> np.ndarray:
    """One query [K, G, H] at `position` over keys and values [S, K, H], in float64."""
    first = 0 if window is None else max(0, position - window + 1)
    k, v = k[first : position + 1].astype(np.float64), v[first : position + 1].astype(np.float64)
    score = np.einsum("kgh,skh->kgs", q.astype(np.float64), k)
    weight = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("kgs,skh->kgh", weight / weight.sum(-1, keepdims=True), v)


def step(lengths: list[int], chunk: int, window: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of these lengths, all but whose last `chunk` tokens are cached in shuffled pages of a dirty pool: got, wanted."""
    rng = np.random.default_rng(1)
    rows = len(lengths)
    ids = rng.permutation(np.arange(1, rows * W + 1)).reshape(rows, W).astype(np.int32)
    used = -(-np.array(lengths) // PAGE)
    table = np.where(np.arange(W)[None] < used[:, None], ids, 0)
    pool = rng.standard_normal((2, rows * W + 2, PAGE, K, H)).astype(np.float32) * 50
    pool[:, 0] = 0
    pool[:, -1] = np.nan
    text = rng.standard_normal((2, rows, W * PAGE, K, H)).astype(np.float32)
    start = np.maximum(np.array(lengths) - chunk, 0)
    for row in range(rows):
        for position in range(start[row]):
            pool[:, table[row, position // PAGE], position % PAGE] = text[:, row, position]
    count = np.array(lengths) - start
    q = rng.standard_normal((rows, chunk, K, G, H)).astype(np.float32)
    new = np.stack([np.stack([text[i, r, start[r] : start[r] + chunk] for r in range(rows)]) for i in range(2)])
    there = np.arange(chunk)[None] < count[:, None]
    pad = 0 if chunk == 1 else 5
    flat = [np.concatenate([x[there], np.ones((pad, *x.shape[2:]), x.dtype)]) for x in (q, new[0], new[1])]
    # Slots in another order than rows, and behind their own pages what an owner before them left.
    slot = rng.permutation(rows)
    tables = np.where(np.arange(W)[None] < used[:, None], ids, rows * W + 1)[np.argsort(slot)]
    table, *rest = (jnp.asarray(x, jnp.int32) for x in (tables, slot, start, count))
    given = ragged({window: pages_of(table)}, *rest, len(flat[0]))
    attend = PagedAttend(attend_blocks, KVFormat("float32"), PagedLayer(K, G, H, H, window), given, PAGE)
    got, cache = attend(*map(jnp.asarray, flat), (jnp.asarray(pool[0]), jnp.asarray(pool[1])))
    assert not np.asarray(cache[0][0]).any(), "the trash page stays zero"
    assert np.isfinite(got).all(), "nobody reads a page that is not its own"
    real = [(r, c) for r in range(rows) for c in range(count[r])]
    wanted = [dense(q[r, c], text[0, r], text[1, r], int(start[r]) + c, window) for r, c in real]
    return np.asarray(got)[: len(real)], np.stack(wanted)


@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("chunk", slow_but([40], [1, 24, 40]))
def test_paged_attention_is_dense_attention(chunk: int, window: int | None) -> None:
    lengths = [1, PAGE - 1, PAGE, PAGE + 1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK]

    got, wanted = step(lengths, chunk, window)

    np.testing.assert_allclose(got, wanted, atol=2e-5)
