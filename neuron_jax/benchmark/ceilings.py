"""What this machine can do at most, measured: copying memory and multiplying matrices; knows JAX, no models, no engines."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen

COPY_BYTES = {"cpu": 2**28, "gpu": 2**30}
"""Well beyond any cache."""
MATMUL_WIDTH = {"cpu": 2048, "gpu": 8192}
IN_A_ROW = 4
"""Calls between two looks at the clock: on a GPU a single one would be over before it was waited for."""
REPEATS = 5


@frozen
class Ceilings:
    """Of one device (a CPU with all its cores is one): bytes and flops per second, and the matmul's dtype."""

    copy: float
    matmul: float
    dtype: str


def measure(device: Any, dtype: Any) -> Ceilings:
    """Takes a second or two; the memory is given back."""
    return Ceilings(_copy(device), _matmul(device, dtype), jnp.dtype(dtype).name)


def _copy(device: Any) -> float:
    """Bytes read plus bytes written per second, into memory that is there already."""
    count = COPY_BYTES[device.platform] // 4
    step = jax.jit(_onto, donate_argnums=1, keep_unused=True)
    source, target = (jnp.zeros(count, jnp.float32, device=device) for _ in range(2))

    def copy() -> None:
        nonlocal source, target
        source, target = step(source, target), source

    seconds = _seconds(copy, lambda: source)
    source.delete()
    target.delete()
    return 2 * 4 * count / seconds


def _onto(source: jax.Array, target: jax.Array) -> jax.Array:
    """A sum rather than the same values, or nothing would be copied; `target` is donated to be written to."""
    del target
    return source + 1.0


def _matmul(device: Any, dtype: Any) -> float:
    width = MATMUL_WIDTH[device.platform]
    product = square = jnp.full((width, width), 1 / width, dtype, device=device)
    step = jax.jit(jnp.matmul)

    def multiply() -> None:
        nonlocal product
        product = step(product, square)

    return 2 * width**3 / _seconds(multiply, lambda: product)


def _seconds(call: Callable[[], None], result: Callable[[], Any]) -> float:
    """Of one call: the median over some rows of calls, after one row that warms up."""
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        for _ in range(IN_A_ROW):
            call()
        jax.block_until_ready(result())
        taken.append((time.perf_counter() - began) / IN_A_ROW)
    return statistics.median(taken[1:])
