"""Which layers of a model share a table of pages: those that see equally far back; recurrent ones have none. Knows no pages."""

from collections.abc import Iterable

from models.spec import LayerSpec, PagedLayer

PageGroups = tuple[int | None, ...]
"""The window of each group of layers; None: all tokens before."""


def page_groups(layers: Iterable[LayerSpec]) -> PageGroups:
    """The groups of a model: the one that sees everything first, then by window."""
    windows = {layer.window for layer in layers if isinstance(layer, PagedLayer)}
    return (*([None] if None in windows else []), *sorted(window for window in windows if window is not None))
