"""The text part of a checkpoint that has more parts, as a `Checkpoint` of its own; must not know containers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from attrs import evolve, frozen

from models.storage import Array, Blocks, Storage
from models.wrapper import HEAD, is_wrapper, text_config, text_names
from neuron_jax.weights.spec import Checkpoint, TensorInfo


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` itself where it is of text alone. Closing either closes both."""
    if not is_wrapper(checkpoint.config):
        return checkpoint
    names = text_names(checkpoint.tensors)
    tensors = {own: evolve(checkpoint.tensors[name], name=own) for own, name in names.items()}
    storage = {own: checkpoint.storage[name] for own, name in names.items()}
    # The two configs may differ on it, and the files are the better witness: a head that is the embeddings is not stored.
    config = {**text_config(checkpoint.config), "tie_word_embeddings": HEAD not in names}
    spare = frozenset(own for own, name in names.items() if name in checkpoint.spare)
    return TextPart(checkpoint, names, config, tensors, storage, spare)


@frozen(eq=False)
class TextPart:
    """See `text_part`. Nothing of the other parts is read."""

    _whole: Checkpoint
    _names: Mapping[str, str]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    storage: Mapping[str, Storage]
    spare: frozenset[str]

    @property
    def path(self) -> Path:
        return self._whole.path

    def stored(self, name: str) -> Blocks | Array:
        """See `Checkpoint`."""
        return self._whole.stored(self._names[name])

    def read(self, name: str) -> Array:
        """See `Checkpoint`."""
        return self._whole.read(self._names[name])

    def close(self) -> None:
        self._whole.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
