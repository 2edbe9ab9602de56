"""Our own kernel in Pallas' interpreter, with what stores its tokens, against dense float64 attention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.sharding import make_mesh
from neuron_jax.engine.attention import flash, pallas
from neuron_jax.engine.attention.ragged import Ragged
from neuron_jax.engine.attention.trial import Case
from neuron_jax.engine.attention.work import most_tiles, work
from tests.fakes import quick
from tests.fakes.paged_case import PagedCase, paged_case
from tests.fakes.params import slow_but

PAGE = 16
LENGTHS = [1, PAGE - 1, PAGE, PAGE + 1, 63, 64, 65, 300, 512, 0]
MIXED = [1, 24, 1, 24, 1, 24, 1, 1, 24, 1]
"""Tokens of the rows of a step with chunks of prompts and streams side by side."""


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that short texts are read by several programs."""
    monkeypatch.setattr(flash, "SHORTEST", 64)
    monkeypatch.setattr(flash, "MOST_SPLITS", 4)
    monkeypatch.setattr(flash, "LEAST_SPLITS", 4)


def attended(
    case: PagedCase, rows: Ragged, pad: int, dtype: Any = jnp.float32, devices: int = 1, **kernel: Any
) -> np.ndarray:
    """What the real tokens of the step get, [T, K, G, v_width]."""
    cpus = jax.devices("cpu")[:devices]
    served = Case(make_mesh(cpus), dtype, case.kv, 0, case.cache[0].shape[1], (case.layer,))
    sinks = None if case.sinks is None else jnp.asarray(case.sinks)

    def step(cache: Any, *tokens: jax.Array) -> Any:
        attend = pallas.make(served, rows, interpret=True)
        attend.kernel = evolve(attend.kernel, **kernel)
        mixed, cache = attend(*tokens, cache, sinks)
        return mixed, attend.turns, cache[0][0]

    flat = [jnp.asarray(case.flat(part, pad)).astype(dtype) for part in (case.q, case.k, case.v)]
    mixed, turns, trash = quick.jit(step)(tuple(map(jnp.asarray, case.cache)), *flat)
    real = int(case.count.sum())
    assert mixed.dtype == dtype
    assert not np.asarray(mixed[real:].astype(jnp.float32)).any(), "padding gets zeros"
    assert not np.asarray(turns).any(), "the next layer's kernel counts from zero"
    assert not np.asarray(trash.astype(jnp.float32)).any(), "the trash page stays zero"
    return np.asarray(mixed.astype(jnp.float32))[:real]


def check(case: PagedCase, *, pad: int = 3, most: float = 2e-5, **how: Any) -> None:
    got = attended(case, case.ragged(pad), pad, **how)
    np.testing.assert_allclose(got, case.stored[case.real], atol=most)


@pytest.mark.parametrize("window", slow_but([100], [None, 1, PAGE, 100]))
@pytest.mark.parametrize("chunk", slow_but([MIXED], [1, 24, MIXED]))
def test_it_is_dense_attention(chunk: Any, window: int | None) -> None:
    check(paged_case(LENGTHS, chunk=chunk, window=window))


@pytest.mark.parametrize(
    "extra",
    slow_but(
        [{"soft_cap": 1.5, "sinks": True, "v_width": 12, "window": 20}, {"window": 60, "aligned": True}],
        [
            {"soft_cap": 1.5},
            {"sinks": True},
            {"v_width": 8},
            {"window": 60, "aligned": True},
            {"soft_cap": 1.5, "sinks": True, "v_width": 12, "window": 20},
        ],
    ),
)
def test_it_does_what_families_differ_in(extra: dict[str, Any]) -> None:
    check(paged_case(LENGTHS, chunk=MIXED, **extra))


@pytest.mark.parametrize(
    ("heads", "v_width"),
    slow_but(
        [((1, 20, 80), 0), ((1, 80, 48), 32)],
        [((2, 1, 96), 0), ((1, 20, 80), 0), ((1, 16, 128), 0), ((2, 2, 256), 0), ((1, 8, 64), 0), ((1, 80, 48), 32)],
    ),
)
def test_of_every_head_size_and_group(heads: tuple[int, int, int], v_width: int) -> None:
    """Groups of more heads than a program takes are shared by several."""
    check(paged_case([1, 70, 300, 0], chunk=[1, 20, 1, 1], heads=heads, v_width=v_width), most=5e-5)


@pytest.mark.parametrize("page_size", slow_but([128], [8, 32, 64, 128]))
def test_pages_of_other_sizes(page_size: int) -> None:
    check(paged_case([1, 127, 128, 129, 500], chunk=[1, 1, 30, 1, 1], page_size=page_size))


@pytest.mark.parametrize("kv", slow_but(["int8"], ["bfloat16", "int8", "fp8"]))
def test_narrow_caches(kv: str) -> None:
    check(paged_case(LENGTHS, chunk=MIXED, kv=kv, window=200), most=1e-4)


def test_float8_of_cards_that_do_not_convert_it() -> None:
    """Those of Ampere: the same numbers out of the same bytes, for each of them."""
    every = jnp.arange(256, dtype=jnp.uint8)
    wanted = jax.lax.bitcast_convert_type(every, jnp.float8_e4m3fn).astype(jnp.float32)
    got = flash._from_float8(jax.lax.bitcast_convert_type(every, jnp.int8), jnp.float32)
    real = ~np.isnan(wanted)

    np.testing.assert_array_equal(np.asarray(got)[real], np.asarray(wanted)[real])
    assert real.sum() == 254
    check(paged_case([1, 70, 300], kv="fp8"), most=1e-4, converts=False)


def test_bfloat16_queries_are_summed_in_float32() -> None:
    case = paged_case([300, 512, 40], chunk=[1, 24, 1], kv="bfloat16", heads=(2, 3, 64))
    check(case, dtype=jnp.bfloat16, most=0.03 * np.abs(case.stored).max())


@pytest.mark.parametrize("kv", slow_but(["float32"], ["float32", "int8"]))
def test_a_row_does_not_depend_on_its_neighbours(kv: str) -> None:
    """Bit for bit: alone, among others, and beside a chunk, in the same program."""
    many = paged_case([257, 1, 512, 40], chunk=[1, 1, 1, 20], kv=kv)
    together = attended(many, many.ragged(3), 3)
    rows = many.ragged(3)
    alone = evolve(many, count=np.array([1, 0, 0, 0]), start=np.array([256, 0, 0, 0]))
    few = alone.ragged(3 + int(many.count.sum()) - 1)
    assert few.row.shape == rows.row.shape

    np.testing.assert_array_equal(attended(alone, few, 3 + int(many.count.sum()) - 1), together[:1])


def test_guesses_are_rows_of_one_text() -> None:
    """Each gets the bits that it would get as the newest token of its stream."""
    case = paged_case([300, 40], chunk=[3, 1])
    one = jnp.ones(4, jnp.int32)
    slots, starts = jnp.array([0, 0, 0, 1], jnp.int32), jnp.array([297, 298, 299, 39], jnp.int32)
    base = case.ragged(3)
    guessed = evolve(
        base,
        slot=slots,
        start=starts,
        count=one,
        first=jnp.arange(4, dtype=jnp.int32),
        row=jnp.array([0, 1, 2, 3, 3, 3, 3], jnp.int32),
    )
    got = attended(case, guessed, 3)
    last = case.count - 1
    q, k, v = (part[[0, 1], last][:, None] for part in (case.q, case.k, case.v))
    newest = evolve(case, q=q, k=k, v=v, start=case.start + last, count=np.ones(2, int))

    np.testing.assert_allclose(got, case.stored[case.real], atol=2e-5)
    np.testing.assert_array_equal(got[2:], attended(newest, newest.ragged(3), 3))


def test_each_device_mixes_its_own_heads() -> None:
    case = paged_case([1, 70, 300, 0], chunk=[1, 20, 1, 1], sinks=True, heads=(4, 3, 16))
    check(case, devices=2)


@pytest.mark.parametrize("tile", [1, 7, 16])
def test_every_token_is_one_piece_of_work(tile: int) -> None:
    case = paged_case([1, 40, 2, 512, 17, 0], chunk=[1, 40, 2, 1, 16, 1])
    rows = case.ragged(5)
    pieces = work(rows, tile)
    assert pieces.tiles is not None
    done = [
        (int(slot), int(token) + i, int(start) + i)
        for slot, start, count, token in np.concatenate([pieces.singles, pieces.tiles])
        for i in range(count)
    ]
    real = np.asarray(rows.real)
    wanted = zip(np.asarray(rows.slot)[rows.row], range(real.size), np.asarray(rows.position), strict=True)

    assert sorted(done) == sorted(one for one, there in zip(wanted, real, strict=True) if there)
    assert pieces.tiles[:, 2].max() <= tile
    assert len(pieces.tiles) == most_tiles(real.size, 6, tile)


def test_no_step_has_more_tiles_than_there_is_room_for() -> None:
    """As many rows of two tokens as there can be, and then one long row."""
    counts = np.array([2] * 9 + [46])
    assert sum(-(-counts // 16)) <= most_tiles(int(counts.sum()), counts.size, 16)
