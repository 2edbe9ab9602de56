"""How a dense decoder's sizes are laid out over devices; knows integers, must not know arrays, names or families."""

from typing import Any, Self

import numpy as np
from attrs import evolve, frozen

from models.dense.record import Dense
from models.heads import HeadLayout
from models.linears import linear_store, table_store, undecided
from models.mapping import Store
from models.storage import MXFP4


@frozen
class Layout:
    """`vocab` is the whole, padded where it does not divide. Of the devices of `tensor_parallel` each has the experts of one
    of `expert_parallel` parts.
    """

    heads: HeadLayout
    tensor_parallel: int
    vocab: int
    quant: str
    dtype: Any
    native: bool
    expert_parallel: int = 1

    @classmethod
    def plan(cls, c: Dense, devices: tuple[int, int], quant: str, dtype: Any, native: bool) -> Self:
        """`devices`: of `tensor_parallel`, and parts of the experts."""
        heads = HeadLayout.plan(c.query_heads, c.kv_heads, devices[0])
        vocab = -(-c.vocab_size // devices[0]) * devices[0]
        return cls(heads, devices[0], vocab, quant, dtype, native, devices[1])

    @property
    def of_experts(self) -> Self:
        """The layout of each expert: its width is split over the devices that have the same experts."""
        return evolve(self, tensor_parallel=self.tensor_parallel // self.expert_parallel)

    def padded(self, vocab: int) -> int:
        """Rows of a table of so many tokens."""
        return -(-vocab // self.tensor_parallel) * self.tensor_parallel

    @property
    def wide(self) -> Any:
        """The dtype that matrices are assembled in, before they are rounded; None = as stored."""
        if self.native:
            return np.dtype(np.float32) if self.quant == "none" else None
        return self.dtype if self.quant in ("none", "stored") else np.dtype(np.float32)

    def split(self, width: int) -> int:
        """Of an MLP's width, padded where it does not divide, what one device has: whole groups of codes where there may be
        codes."""
        if self.quant == "stored" and self.tensor_parallel > 1 and width % MXFP4.group == 0:
            return -(-width // (MXFP4.group * self.tensor_parallel)) * MXFP4.group
        return -(-width // self.tensor_parallel)

    def store(self, inputs: int) -> Store:
        """What a matrix with `inputs` in-dimensions is kept as."""
        return undecided if self.native else linear_store(inputs, self.quant)

    @property
    def exact(self) -> tuple[Any, Store]:
        """The dtype that a small map is assembled in, and what it is kept as: no narrower than it is stored."""
        return (self.wide, undecided) if self.native else (np.dtype(np.float32), linear_store(1, "none"))

    @property
    def table_store(self) -> Store:
        """What the table of tokens is kept as."""
        return undecided if self.native else table_store(self.quant)
