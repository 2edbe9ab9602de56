"""The device that a program is being traced for: some is chosen by what it can do; must not know what is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

_TARGET: ContextVar[Any] = ContextVar("target", default=None)


def device() -> Any:
    """A jax device; this process's first where nobody has said another."""
    found = _TARGET.get()
    return jax.local_devices()[0] if found is None else found


@contextmanager
def tracing_for(device: Any) -> Iterator[None]:
    """What is traced within is for `device`, which need not be here."""
    token = _TARGET.set(device)
    try:
        yield
    finally:
        _TARGET.reset(token)
