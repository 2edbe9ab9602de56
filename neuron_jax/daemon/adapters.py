"""The adapters of a model: their names, their folders, and the model and number that a request's `model` means; pure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from neuron_jax.common.kinds import ADAPTER

SEPARATOR = ":"
"""Between a model's id and the name of one of its adapters."""


def folders_of(adapters: Sequence[str]) -> Mapping[str, Path]:
    """By name, in the order of their numbers, of NAME=FOLDER."""
    found = [ADAPTER.fullmatch(text) for text in adapters]
    return {one["name"]: Path(one["folder"]).expanduser() for one in found if one is not None}


def number_of(name: str, adapters: Sequence[str]) -> int | None:
    """As an engine counts them, from 1; None where there is none of that name."""
    names = list(folders_of(adapters))
    return names.index(name) + 1 if name in names else None


def names_of(model_id: str, adapters: Sequence[str]) -> Sequence[str]:
    """What clients ask for."""
    return [f"{model_id}{SEPARATOR}{name}" for name in folders_of(adapters)]
