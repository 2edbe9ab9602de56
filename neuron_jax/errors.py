"""The exceptions of a neuron, one tree; knows no HTTP status and no library's own errors.

NeuronError
├── EngineDied      an engine process ended while somebody still needed it
├── ListenError     the address of the daemon cannot be listened on
└── LoadError       a model cannot be loaded; `kind` says why in one word

What is wrong with the configuration is `common.errors.ConfigError`, in both programs.
"""

from collections.abc import Mapping
from typing import Any


class NeuronError(Exception):
    """Base of everything a neuron raises on purpose."""


class EngineDied(NeuronError):  # noqa: N818 - what happened, as the wire documents it
    """The engine process is gone; the message holds its last words. `kind` is one of `workers.faults`, or `exited`."""

    def __init__(self, message: str, kind: str = "exited") -> None:
        super().__init__(message)
        self.kind = kind

    def again(self) -> "EngineDied":
        """The same for one more of those who waited: one object that is raised in many tasks would pile up tracebacks."""
        return EngineDied(str(self), self.kind)


class ListenError(NeuronError):
    """The message names the address and the settings that move it."""


class LoadError(NeuronError):
    """A model that cannot be loaded. `kind` and `extras` go to the caller of POST /models/load as they are."""

    def __init__(self, kind: str, message: str, extras: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.extras: Mapping[str, Any] = extras or {}
