"""Head layouts: every head exactly where it must be, and no device with more work than needed."""

import numpy as np
import pytest

from models.heads import PADDING, HeadLayout

SHAPES = [(9, 3), (8, 8), (8, 2), (12, 4), (6, 1), (14, 2), (32, 8), (5, 5)]


@pytest.mark.parametrize(("queries", "kv_heads"), SHAPES)
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 8])
def test_every_query_head_sits_once_with_its_own_kv_head(queries: int, kv_heads: int, devices: int) -> None:
    """A layout drops no query head, doubles none, and never moves one to another kv head."""
    layout = HeadLayout.plan(queries, kv_heads, devices)
    query, kv = layout.query_index(), layout.kv_index()
    used = query != PADDING

    assert sorted(query[used]) == list(range(queries))
    assert np.array_equal((query // layout.group)[used], np.broadcast_to(kv[:, None], query.shape)[used])
    assert layout.slots % devices == 0


@pytest.mark.parametrize(("queries", "kv_heads"), SHAPES)
def test_one_device_pads_nothing(queries: int, kv_heads: int) -> None:
    """Without tensor parallelism the layout is the checkpoint's own."""
    layout = HeadLayout.plan(queries, kv_heads, 1)

    assert (layout.slots, layout.width) == (kv_heads, queries // kv_heads)
    assert layout.query_index().ravel().tolist() == list(range(queries))


@pytest.mark.parametrize(
    ("queries", "kv_heads", "devices", "slots", "width"),
    [(9, 3, 2, 4, 3), (9, 3, 3, 3, 3), (9, 3, 4, 4, 3), (9, 3, 8, 8, 2), (32, 8, 16, 16, 2), (64, 8, 8, 8, 8)],
)
def test_work_per_device_is_least(queries: int, kv_heads: int, devices: int, slots: int, width: int) -> None:
    """Known best layouts: padding where it is cheaper, replicas with split queries where those are."""
    layout = HeadLayout.plan(queries, kv_heads, devices)

    assert (layout.slots, layout.width) == (slots, width)


def test_spreading_fills_with_zeros() -> None:
    """Padded places are zeros, so their output is zero whatever the input."""
    layout = HeadLayout.plan(9, 3, 8)
    spread = layout.spread_queries(np.ones((9, 5)))

    assert spread.shape == (8, 2, 5)
    assert spread.sum() == 9 * 5
    assert layout.spread_kv(np.ones((3, 5)))[6:].sum() == 0
