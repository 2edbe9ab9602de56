"""The device that a program is being traced for: some is chosen by what it can do; must not know what is computed."""

from contextlib import AbstractContextManager
from typing import Any

import jax

from models.traced import Traced

_TARGET = Traced[Any]("target")


def device() -> Any:
    """A jax device; this process's first where nobody has said another."""
    found = _TARGET.get()
    return jax.local_devices()[0] if found is None else found


def tracing_for(device: Any) -> AbstractContextManager[None]:
    """What is traced within is for `device`, which need not be here."""
    return _TARGET.within(device)
