"""The native kernel against a dense softmax in float64, and its promise: the same bits in any batch, chunk and page size."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.native import library
from neuron_jax.engine.attention.native import NativeAttend
from tests.fakes.paged_case import PagedCase, paged_case

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")


def attended(case: PagedCase) -> np.ndarray:
    """What the kernel makes of the step's new tokens, [R, C, K, G, H]; zeros for padding."""
    keys, values = case.cache
    pool = jnp.asarray(keys.transpose(0, 2, 3, 1)), jnp.asarray(values.transpose(0, 2, 1, 3))
    flat = [jnp.asarray(case.flat(part)) for part in (case.q, case.k, case.v)]
    mixed, (new_keys, new_values) = NativeAttend(case.layer, case.ragged(pad=0))(*flat, pool)
    # The case's pool holds the new tokens already: writing them again must change nothing.
    assert np.array_equal(new_keys, pool[0])
    assert np.array_equal(new_values, pool[1])
    found = np.zeros_like(case.q)
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


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_a_tokens_bits_depend_on_its_own_past_alone(page_size: int) -> None:
    """500 tokens in one chunk, and in chunks of 1, of 7 and of 60."""
    kind: dict[str, Any] = {"heads": (2, 3, 32), "most": 512}
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
    return evolve(case, cache=(keys, values), **new)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("chunk", [1, 30])
def test_rows_beside_each_other_get_what_each_gets_alone(chunk: int, window: int | None) -> None:
    """Single tokens and chunks stand side by side: of the rows with 1 and 17 tokens all are new."""
    case = paged_case([300, 17, 512, 128, 1], chunk=chunk, heads=(2, 3, 32), window=window)
    together = attended(case)
    for row in range(5):
        part = slice(row, row + 1)
        names = ("q", "k", "v", "table", "start", "count")
        alone = evolve(case, **{name: getattr(case, name)[part] for name in names})
        assert np.array_equal(attended(alone)[0], together[row]), row
