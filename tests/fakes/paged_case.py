"""Attention steps over dirty, shuffled pages with the answer worked out densely in float64; knows no kernel."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from attrs import frozen

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.ragged import Ragged, Table, ragged

MOST = {"int8": 127.0, "fp8": 448.0}
STORED = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}


@frozen
class PagedCase:
    """One step: what a kernel is given, and what the real tokens get. A row of length 0 is padding."""

    q: np.ndarray  # [R, C, K, G, H], scaled
    k: np.ndarray  # [R, C, K, H] of the same tokens; they are in `cache`, too
    v: np.ndarray
    cache: tuple[np.ndarray, ...]
    kv: KVFormat
    table: np.ndarray
    start: np.ndarray
    count: np.ndarray
    layer: PagedLayer
    sinks: np.ndarray | None
    stored: np.ndarray  # float64: the answer over the numbers that the cache holds
    exact: np.ndarray  # float64: the answer over the numbers before they were stored

    @property
    def real(self) -> np.ndarray:
        """[R, C] which tokens exist."""
        return np.arange(self.q.shape[1])[None] < self.count[:, None]

    @property
    def rows(self) -> dict[str, Any]:
        """The keyword arguments of every kernel."""
        table, start, count = (jnp.asarray(part, jnp.int32) for part in (self.table, self.start, self.count))
        rows: dict[str, Any] = {"table": table, "start": start, "count": count, "layer": self.layer}
        return rows if self.sinks is None else rows | {"sinks": jnp.asarray(self.sinks)}

    def ragged(self, pad: int) -> Ragged:
        """The same rows one after the other, each in the slot of its number, and `pad` tokens of padding."""
        table, start, count = (jnp.asarray(part, jnp.int32) for part in (self.table, self.start, self.count))
        slot = jnp.arange(len(self.start), dtype=jnp.int32)
        # Behind what else stands in a slot's line.
        lines = jnp.pad(table, ((0, 0), (5, 0)), constant_values=-7)
        return ragged(
            {self.layer.window: Table(lines, 5, table.shape[1])}, slot, start, count, int(self.count.sum()) + pad
        )

    def flat(self, part: np.ndarray, pad: int = 0) -> np.ndarray:
        """Of [R, C, ...] the real tokens, [T, ...], and padding."""
        return np.concatenate([part[self.real], np.ones((pad, *part.shape[2:]), part.dtype)])

    def inputs(self, dtype: Any = jnp.float32) -> tuple[Any, ...]:
        """The positional arguments of every kernel."""
        return jnp.asarray(self.q).astype(dtype), tuple(jnp.asarray(leaf) for leaf in self.cache), self.kv


def paged_case(
    lengths: list[int],
    *,
    chunk: int | list[int] = 1,
    heads: tuple[int, int, int] = (2, 3, 16),
    page_size: int = 16,
    most: int = 512,
    window: int | None = None,
    kv: str = "float32",
    seed: int = 1,
    v_width: int = 0,
    soft_cap: float | None = None,
    sinks: bool = False,
    aligned: bool = False,
) -> PagedCase:
    """Rows of these lengths whose last `chunk` tokens are new, K, G and H in `heads`, tables for `most` tokens."""
    chunks = np.broadcast_to(np.array(chunk), len(lengths))
    chunk = int(chunks.max())
    rng = np.random.default_rng(seed)
    kv_heads, group, size = heads
    layer = PagedLayer(kv_heads, group, size, v_width or size, window, soft_cap, sinks, aligned)
    if layer.v_width != size:
        assert kv not in MOST, "scales are worked out for one width"
    rows, width = len(lengths), most // page_size
    ids = rng.permutation(np.arange(1, rows * width + 1)).reshape(rows, width)
    table = np.where(np.arange(width)[None] < -(-np.array(lengths) // page_size)[:, None], ids, 0)
    # The first token of row 0 is the same whatever the other rows are: texts are drawn row by row.
    text = rng.standard_normal((rows, 2, most, kv_heads, size)).astype(np.float32)
    q = rng.standard_normal((rows, chunk, kv_heads, group, size)).astype(np.float32)
    start = np.maximum(np.array(lengths) - chunks, 0)
    count = np.array(lengths) - start
    codes, scales = store(text, kv)
    cache = _dirty(rng, (rows * width + 1, page_size, kv_heads, size), kv)
    extra = rng.standard_normal((kv_heads, group)).astype(np.float32) if sinks else None
    for row, length in enumerate(lengths):
        for position in range(length):
            at = (table[row, position // page_size], position % page_size)
            for i in range(2):
                cache[i][at] = codes[row, i, position]
                if scales is not None:
                    cache[2 + i][at] = scales[row, i, position]
    held = codes.astype(np.float32) if scales is None else codes.astype(np.float32) * scales[..., None]
    answers = [np.zeros((*q.shape[:-1], layer.v_width)), np.zeros((*q.shape[:-1], layer.v_width))]
    held, shown = ((both[:, 0], both[:, 1, ..., : layer.v_width]) for both in (held, text))
    cache[1] = np.ascontiguousarray(cache[1][..., : layer.v_width])
    for row in range(rows):
        for i in range(count[row]):
            for answer, (k, v) in zip(answers, (held, shown), strict=True):
                answer[row, i] = dense(q[row, i], k[row], v[row], position=start[row] + i, layer=layer, sinks=extra)
    new = np.minimum(start[:, None] + np.arange(chunk)[None], most - 1)
    k, v = (np.stack([part[row, new[row]] for row in range(rows)]) for part in shown)
    return PagedCase(q, k, v, tuple(cache), KVFormat(kv), table, start, count, layer, extra, *answers)


def store(values: np.ndarray, kv: str) -> tuple[np.ndarray, np.ndarray | None]:
    """[..., H] as stored and, of the 8-bit formats, scales [...]."""
    if kv not in MOST:
        return values.astype(STORED[kv]), None
    scale = (np.abs(values).max(-1) / np.float32(MOST[kv])).astype(np.float32)
    steps = values / scale[..., None]
    return (np.rint(steps) if kv == "int8" else steps).astype(STORED[kv]), scale


def dense(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    position: int,
    layer: PagedLayer,
    sinks: np.ndarray | None,
) -> np.ndarray:
    """One query [K, G, H] at `position` over keys and values [S, K, H], in float64."""
    back = 0 if layer.window is None else position % layer.window if layer.aligned else layer.window - 1
    first = 0 if layer.window is None else max(0, position - back)
    k, v = k[first : position + 1].astype(np.float64), v[first : position + 1].astype(np.float64)
    score = np.einsum("kgh,skh->kgs", q.astype(np.float64), k)
    if layer.soft_cap is not None:
        score = layer.soft_cap * np.tanh(score / layer.soft_cap)
    weight = np.exp(score)
    total = weight.sum(-1, keepdims=True) + (0 if sinks is None else np.exp(sinks.astype(np.float64))[..., None])
    return np.einsum("kgs,skh->kgh", weight / total, v)


def _dirty(rng: np.random.Generator, shape: tuple[int, ...], kv: str) -> list[np.ndarray]:
    """What other requests left in the pages; the trash page is zero."""
    leaves = [(rng.standard_normal(shape) * 50).astype(STORED[kv]) for _ in range(2)]
    if kv in MOST:
        leaves += [rng.uniform(1, 50, shape[:3]).astype(np.float32) for _ in range(2)]
    for leaf in leaves:
        leaf[0] = 0
    return leaves
