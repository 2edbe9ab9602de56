"""What an open checkpoint offers, whatever container it is; knows names and shapes, must not know formats or jax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from attrs import frozen

from models.storage import Array, Blocks, Storage


@frozen
class TensorInfo:
    """A tensor that was not read yet. `dtype` is the container's own name for it, `nbytes` what it takes there."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


class Checkpoint(Protocol):
    """Open weights in Hugging Face terms: `config` as in config.json, `tensors` by Hugging Face names. Close it."""

    @property
    def path(self) -> Path:
        """The folder or file that it is, for messages."""
        ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    @property
    def storage(self) -> Mapping[str, Storage]:
        """What `stored` will give, by name; known from the headers alone."""
        ...

    @property
    def spare(self) -> frozenset[str]:
        """Tensors of zeros that a family may do without: it need not know them."""
        ...

    def stored(self, name: str) -> Blocks | Array:
        """One tensor in memory of its own, no wider than it is stored: blocks, or a float32, float16 or bfloat16 array.

        The rows of blocks are all axes but the last.
        """
        ...

    def read(self, name: str) -> Array:
        """The same as an array of its shape; blocks come as float32."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
