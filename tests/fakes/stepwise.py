"""A `models.spec.Recurrence` from the update of one token alone: its chunks are a plain loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen

from models.spec import CHUNK


@frozen
class Stepwise:
    """`update` (state, token) -> (the state behind it, what it is given)."""

    update: Callable[[Any, Any], tuple[Any, Any]]

    def step(self, state: Any, token: Any) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        return self.update(state, token)

    def chunk(self, state: Any, tokens: Any, count: jax.Array) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""

        def one(state: Any, token: Any) -> tuple[Any, Any]:
            at, brought = token
            after, given = self.update(state, brought)
            return jax.tree.map(lambda new, old: jnp.where(at < count, new, old), after, state), given

        return jax.lax.scan(one, state, (jnp.arange(CHUNK), tokens))

    def native(self, *_: Any) -> tuple[Any, Any]:
        """Never called: no layer of the tests says that it has a kernel."""
        raise AssertionError("a plain loop has no kernel")

    def on_gpu(self, *_: Any, mesh: Any = None, interpret: bool = False) -> tuple[Any, Any]:
        """Likewise."""
        raise AssertionError("a plain loop has no kernel")
