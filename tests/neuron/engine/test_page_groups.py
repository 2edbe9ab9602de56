"""Which layers share a table of pages."""

import pytest

from models.spec import LayerSpec, PagedLayer, RecurrentLayer
from neuron_jax.engine.page_groups import PageGroups, page_groups


def paged(window: int | None) -> PagedLayer:
    return PagedLayer(kv_heads=1, group=2, k_width=8, v_width=8, window=window)


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        ([paged(None), paged(None)], (None,)),
        ([paged(64), paged(None), paged(16), paged(64)], (None, 16, 64)),
        ([paged(64), RecurrentLayer(())], (64,)),
        ([RecurrentLayer(())], ()),
    ],
)
def test_layers_that_see_equally_far_back_are_a_group(layers: list[LayerSpec], groups: PageGroups) -> None:
    """The one that sees everything first, then by window."""
    assert page_groups(layers) == groups
