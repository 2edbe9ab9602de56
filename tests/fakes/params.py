"""Parameters of tests of which a few are tried always, and all with the slow ones; knows no test."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def slow_but(quick: Container[Any], every: Iterable[Any]) -> list[Any]:
    """All of `every`, marked slow but for those in `quick`."""
    return [one if one in quick else pytest.param(*_values(one), marks=pytest.mark.slow) for one in every]


def _values(one: Any) -> tuple[Any, ...]:
    return one if isinstance(one, tuple) else (one,)
