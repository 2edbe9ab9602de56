"""The default models: loaded one after the other when the neuron starts, and how far that is; must not know devices."""

import logging
from collections.abc import Awaitable, Callable, Sequence

import attrs

from neuron_jax.config import ModelSpec
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.resident import AlreadyLoadedError
from neuron_jax.errors import LoadError

_log = logging.getLogger("neuron.lifecycle")


class DefaultModels:
    """The one owner of what /health calls `activation`. `canonical` is the id behind a name; `load` returns when it serves."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        canonical: Callable[[str], str],
        load: Callable[[ModelSpec], Awaitable[None]],
    ) -> None:
        self.pending = [spec.model_id for spec in specs]
        self.in_progress: str | None = None
        self.completed: list[str] = []
        self.failed: list[tuple[str, str]] = []
        self._specs = specs
        self._canonical = canonical
        self._load = load

    @property
    def state(self) -> str:
        """`pre_warming` until every default model was tried."""
        return "pre_warming" if self.pending or self.in_progress else "ready"

    async def load_all(self) -> None:
        """One after the other, so that each finds the memory that the one before has left."""
        for spec in self._specs:
            self.pending.remove(spec.model_id)
            self.in_progress = model_id = self._canonical(spec.model_id)
            error = await self._error(attrs.evolve(spec, model_id=model_id))
            self.in_progress = None
            if error is None:
                self.completed.append(model_id)
            else:
                self.failed.append((model_id, error))

    async def _error(self, spec: ModelSpec) -> str | None:
        """Why `spec` does not serve."""
        try:
            await self._load(spec)
        except (LoadError, Problem) as error:
            return str(error)
        except AlreadyLoadedError:
            _log.info("%s was loaded before its turn", spec.model_id)
        except Exception as error:  # noqa: BLE001  # a fault of ours: the next default model has its turn all the same
            _log.exception("the default model %s could not be loaded", spec.model_id)
            return f"{type(error).__name__}: {error}"
        return None
