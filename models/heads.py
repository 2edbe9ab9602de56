"""How attention heads are laid out over devices; knows integers and numpy, must not know jax or checkpoints.

A group is one kv head with the query heads that read it. Groups are the unit that is sharded: a device computes q, k, v
and attention of its groups without asking another. When the kv heads do not divide by the number of devices, groups of
zeros fill up; when there are fewer kv heads than devices, a kv head is replicated and its query heads are split among
the replicas. A head of zeros meets rows of zeros in the output projection, so padding is exact.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from attrs import frozen

PADDING = -1
"""Stands in an index table where no head of the checkpoint goes."""


@frozen
class HeadLayout:
    """`kv_heads` and `group` (query heads per kv head) of the checkpoint, and the `replicas` of each kv head."""

    kv_heads: int
    group: int
    tensor_parallel: int
    replicas: int

    @classmethod
    def plan(cls, query_heads: int, kv_heads: int, tensor_parallel: int) -> Self:
        """The layout with the least work per device, which is that of (G + 2) K heads; fewest replicas when equal."""
        assert query_heads % kv_heads == 0, f"{query_heads} query heads over {kv_heads} kv heads"
        group = query_heads // kv_heads
        layouts = [cls(kv_heads, group, tensor_parallel, replicas) for replicas in range(1, group + 1)]
        return min(layouts, key=lambda layout: layout.slots * (layout.width + 2))

    @property
    def slots(self) -> int:
        """K: groups as laid out, a multiple of `tensor_parallel`."""
        return -(-self.kv_heads * self.replicas // self.tensor_parallel) * self.tensor_parallel

    @property
    def width(self) -> int:
        """G: query heads per group as laid out."""
        return -(-self.group // self.replicas)

    def kv_index(self) -> npt.NDArray[np.int64]:
        """[K] the kv head of the checkpoint in each slot, or PADDING."""
        slot = np.arange(self.slots)
        return np.where(slot < self.kv_heads * self.replicas, slot // self.replicas, PADDING)

    def query_index(self) -> npt.NDArray[np.int64]:
        """[K, G] the query head of the checkpoint in each place, or PADDING."""
        slot = np.arange(self.slots)[:, None]
        within = slot % self.replicas * self.width + np.arange(self.width)[None, :]
        used = (slot < self.kv_heads * self.replicas) & (within < self.group)
        return np.where(used, slot // self.replicas * self.group + within, PADDING)

    def spread_kv(self, heads: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[kv_heads, ...] of the checkpoint -> [K, ...], zeros where padded."""
        return _take(heads, self.kv_index())

    def spread_queries(self, heads: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[query heads, ...] of the checkpoint -> [K, G, ...], zeros where padded."""
        return _take(heads, self.query_index())


def _take(heads: npt.NDArray[Any], index: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    spread = heads[np.maximum(index, 0)]
    spread[index == PADDING] = 0
    return spread
