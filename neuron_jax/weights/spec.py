"""What an open checkpoint offers, whatever container it is; knows names and shapes, must not know formats or jax."""

from collections.abc import Mapping
from typing import Any, Protocol, Self

import numpy.typing as npt
from attrs import frozen


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
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> npt.NDArray[Any]:
        """One tensor in memory of its own: float32, float16 or bfloat16; quantized blocks come as float32."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...
