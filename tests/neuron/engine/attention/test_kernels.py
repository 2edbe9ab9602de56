"""The reference against dense float64 attention: lengths around pages and blocks, windows, head sizes, formats, padding."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from neuron_jax.engine.attention.reference import BLOCK, attend_blocks
from tests.fakes import quick
from tests.fakes.paged_case import PagedCase, paged_case
from tests.fakes.params import slow_but

PAGE = 16
LENGTHS = [1, PAGE - 1, PAGE, PAGE + 1, 63, 64, 65, BLOCK, BLOCK + 1, 256, 257, 512, 0]
HEADS = [(2, 3, 64), (1, 8, 80), (2, 1, 96), (1, 20, 128), (3, 2, 8)]


def run(case: PagedCase, dtype: Any = jnp.float32) -> np.ndarray:
    q, cache, kv = case.inputs(dtype)
    mixed = quick.jit(lambda q, cache: attend_blocks(q, cache, kv, **case.rows))(q, cache)
    assert mixed.dtype == dtype
    return np.asarray(mixed.astype(jnp.float32))


@pytest.mark.parametrize("window", slow_but([None, 16], [None, 1, 16, 100]))
def test_decode_is_dense_attention(window: int | None) -> None:
    case = paged_case(LENGTHS, window=window)
    got = run(case)

    np.testing.assert_allclose(got[case.real], case.stored[case.real], atol=2e-5)
    assert np.isfinite(got).all(), "padding stays finite"


@pytest.mark.parametrize("heads", HEADS)
def test_decode_of_every_head_size_and_group(heads: tuple[int, int, int]) -> None:
    case = paged_case([1, 70, 300, 0], heads=heads)

    np.testing.assert_allclose(run(case)[case.real], case.stored[case.real], atol=5e-5)


@pytest.mark.parametrize("chunk", [7, 24])
@pytest.mark.parametrize("window", slow_but([5], [None, 5, 100]))
def test_chunks_are_dense_attention(window: int | None, chunk: int) -> None:
    case = paged_case(LENGTHS, chunk=chunk, window=window)

    np.testing.assert_allclose(run(case)[case.real], case.stored[case.real], atol=2e-5)


@pytest.mark.parametrize("chunk", [1, 24])
def test_aligned_windows_begin_at_multiples(chunk: int) -> None:
    """Of which one lies within the queries of a row, too."""
    case = paged_case(LENGTHS, chunk=chunk, window=60, aligned=True)

    np.testing.assert_allclose(run(case)[case.real], case.stored[case.real], atol=2e-5)


@pytest.mark.parametrize("kv", slow_but(["int8"], ["bfloat16", "int8", "fp8"]))
@pytest.mark.parametrize("chunk", [1, 24])
def test_narrow_caches_lose_what_storing_lost_and_no_more(chunk: int, kv: str) -> None:
    """Over the numbers that the cache holds a kernel is as exact as with float32; storing them costs what is said."""
    case = paged_case(LENGTHS, chunk=chunk, kv=kv, heads=(2, 3, 64), window=200)
    got = run(case)[case.real]

    np.testing.assert_allclose(got, case.stored[case.real], atol=1e-4)
    lost = np.sqrt(np.mean((got - case.exact[case.real]) ** 2)) / np.sqrt(np.mean(case.exact[case.real] ** 2))
    assert lost < {"bfloat16": 0.02, "int8": 0.05, "fp8": 0.25}[kv]


@pytest.mark.parametrize("chunk", [1, 24])
def test_bfloat16_queries_are_summed_in_float32(chunk: int) -> None:
    case = paged_case([300, 512, 40], chunk=chunk, kv="bfloat16", heads=(2, 3, 64))
    got = run(case, jnp.bfloat16)

    scale = np.abs(case.stored[case.real]).max()
    assert np.abs(got - case.stored)[case.real].max() < 0.03 * scale


@pytest.mark.parametrize("kv", slow_but(["float32", "int8"], ["float32", "bfloat16", "int8", "fp8"]))
def test_a_row_does_not_depend_on_its_neighbours(kv: str) -> None:
    """Bit for bit: alone, among others, and beside one ten times as long."""
    many = paged_case([40, 1, 512, 257], kv=kv)
    names = ("q", "k", "v", "table", "start", "count", "stored", "exact")
    alone = evolve(many, **{name: getattr(many, name)[:1] for name in names})

    np.testing.assert_array_equal(run(many)[:1], run(alone))


EXTRAS: dict[str, dict[str, Any]] = {
    "a soft cap": {"soft_cap": 1.5},
    "sinks": {"sinks": True},
    "narrower values": {"v_width": 8},
    "all of it behind a window": {"soft_cap": 1.5, "sinks": True, "v_width": 12, "window": 20},
}


@pytest.mark.parametrize("chunk", [1, 24])
@pytest.mark.parametrize("extra", EXTRAS)
def test_the_reference_does_what_families_differ_in(extra: str, chunk: int) -> None:
    case = paged_case(LENGTHS, chunk=chunk, **EXTRAS[extra])
    got = run(case)

    np.testing.assert_allclose(got[case.real], case.stored[case.real], atol=2e-5)
    assert np.isfinite(got).all(), "padding stays finite"


@pytest.mark.parametrize("page_size", [8, 32])
def test_pages_of_other_sizes(page_size: int) -> None:
    case = paged_case([1, 31, 32, 33, 500], page_size=page_size)

    np.testing.assert_allclose(run(case)[case.real], case.stored[case.real], atol=2e-5)
