"""A value that holds for what is traced within a block; must not know what is traced."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

T = TypeVar("T")


class Traced(Generic[T]):
    """Of one kind. Of each thread and task its own, for programs are traced side by side."""

    def __init__(self, name: str) -> None:
        self._value: ContextVar[T | None] = ContextVar(name, default=None)

    @contextmanager
    def within(self, value: T | None) -> Iterator[None]:
        """`value` is what `get` gives in here."""
        token = self._value.set(value)
        try:
            yield
        finally:
            self._value.reset(token)

    def get(self) -> T | None:
        """That of the innermost block; None outside of any."""
        return self._value.get()
