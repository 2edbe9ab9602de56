"""Which kernel computes a model's products where a step has few tokens: tried on the device against what XLA makes of them.

Knows matrices by their shapes, no model and no requests. A kernel is used for as many rows as it is right and no slower
for; where it fails, by whatever exception, XLA computes the product.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax

from models import matrices
from models.dense.record import Activation
from models.matrices import Around, Kernel, Kind, Matrix, Shape
from models.native.ops import Norm
from neuron_jax.engine.attention.trial import tolerance

log = logging.getLogger("neuron.engine")

ROWS = (1, 16, 64)
"""Of a trial: what holds for so many is taken to hold for fewer, down to the next."""

MOST_BYTES = 256 << 20
"""Of the matrices that a trial reads one after the other: more than any GPU's cache holds."""

CALLS = 5
"""Of which the fastest counts: what is slower was disturbed."""

DRIVER = Path("/proc/driver/nvidia/version")


@frozen
class Products:
    """`models.matrices.Choose`: the kernel for up to `most` rows of a matrix."""

    kernel: Kernel
    most: Mapping[Shape, int]

    def __call__(self, shape: Shape, rows: int) -> Kernel | None:
        return self.kernel if rows <= self.most.get(shape, 0) else None


def shapes_in(trace: Callable[[], object]) -> set[Shape]:
    """The matrices of which `trace` asks for products."""
    seen: set[Shape] = set()

    def note(shape: Shape, rows: int) -> None:  # noqa: ARG001
        seen.add(shape)

    with matrices.computing(note):
        trace()
    return seen


def choose(
    device: Any, dtype: Any, shapes: Collection[Shape], *, tried: bool = True, kept: Path | None = None
) -> Products | None:
    """The kernels for `shapes` on `device`, or None where XLA computes everything. Those that are not `tried` are used for
    as many rows as they were made for. What trials found is remembered in the folder `kept`.
    """
    if device.platform != "gpu" or float(device.compute_capability) < 8 or jnp.dtype(dtype).itemsize != 2:
        return None
    try:  # later versions of JAX have no Triton
        from models import few_rows
    except ImportError:
        log.info("products: xla; this JAX has no Triton")
        return None
    able = [shape for shape in sorted(shapes, key=str) if few_rows.refuses(shape) is None]
    seconds = partial(measured, few_rows.product, dtype)
    rows = [few_rows.MOST_ROWS] * len(able)
    if tried:
        asked = _asked(device, dtype, able, Path(few_rows.__file__))
        rows = remembered(asked, kept, lambda: [_most(shape, seconds) for shape in able])
    most = dict(zip(able, rows, strict=True))
    log.info("products: %s", "; ".join(f"{_named(shape)} up to {rows} rows" for shape, rows in most.items()))
    return Products(few_rows.product, most)


def remembered(asked: str, kept: Path | None, tried: Callable[[], list[int]]) -> list[int]:
    """What a trial found when the same was asked before; else what it finds now."""
    if kept is None:
        return tried()
    file = kept / f"products-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    if file.exists():
        known: list[int] = json.loads(file.read_text())
        return known
    found = tried()
    kept.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(found))
    beside.replace(file)
    return found


def _asked(device: Any, dtype: Any, shapes: Collection[Shape], kernels: Path) -> str:
    """All that a trial's result may depend on."""
    driver = DRIVER.read_text() if DRIVER.exists() else ""
    ours = [jax.__version__, version("jaxlib"), hashlib.sha256(kernels.read_bytes()).hexdigest()]
    return repr([*ours, driver, device.device_kind, jnp.dtype(dtype).name, ROWS, list(map(_named, shapes))])


def _named(shape: Shape) -> str:
    return f"{shape.kind} {shape.outputs}x{shape.inputs}{' gated' if shape.gated else ''}"


def _most(shape: Shape, seconds: Callable[[Shape, int], tuple[float, float]]) -> int:
    """Up to how many rows the kernel is no slower than XLA; 0 where it is not right."""
    most = 0
    for rows in ROWS:
        try:
            ours, theirs = seconds(shape, rows)
        except Exception as error:  # whatever a compiler says no with
            log.warning("%s failed its trial with %d rows: %s", _named(shape), rows, str(error)[:200], exc_info=True)
            return most
        if ours > theirs:
            return most
        most = rows
    return most


class WrongError(Exception):
    """A kernel does not give what XLA does; the message says by how much."""


def measured(kernel: Kernel, dtype: Any, shape: Shape, rows: int) -> tuple[float, float]:
    """Seconds for a product with `rows` rows by `kernel`, and by XLA. Raises WrongError where they differ."""
    many = [some_matrix(shape, dtype, seed).leaves for seed in range(_copies(shape))]
    x = jax.random.normal(jax.random.key(0), (rows, shape.inputs), dtype)
    norm = Norm(jnp.ones(shape.inputs, jnp.float32), 1e-5)
    around = Around(norm=norm, activation=Activation("silu") if shape.gated else None)
    ours, theirs = (jax.jit(partial(_each, way, shape.kind, around)) for way in (kernel, matrices.product))
    got, wanted = (jnp.asarray(way(x, many[:1])[0], jnp.float32) for way in (ours, theirs))
    off = float(jnp.abs(got - wanted).max() / jnp.abs(wanted).max())
    # int8 rounds activations where XLA multiplies; and a NaN is not right either.
    if not off <= tolerance(dtype) * (2 if shape.kind == "int8" else 1):
        raise WrongError(f"differs by {off:.1g} of the largest value")
    return _fastest(ours, x, many), _fastest(theirs, x, many)


def some_matrix(shape: Shape, dtype: Any, seed: int) -> Matrix:
    """Of random values."""
    keys = jax.random.split(jax.random.key(seed), 3)
    of_codes = (shape.outputs, shape.inputs)
    if shape.kind == "float":
        return Matrix("float", (jax.random.normal(keys[0], (shape.inputs, shape.outputs), dtype) / 64,))
    if shape.kind == "table":
        return Matrix("table", (jax.random.normal(keys[0], of_codes, dtype) / 64,))
    if shape.kind == "int4":
        groups = (shape.outputs, shape.inputs // matrices.GROUP)
        codes = jax.random.bits(keys[0], (shape.outputs, shape.inputs // 2), jnp.uint8)
        scale, offset = (jax.random.normal(key, groups, jnp.float16) / 64 for key in keys[1:])
        return Matrix("int4", (codes, scale, offset))
    scale = jax.random.uniform(keys[1], (shape.outputs,), jnp.float32) / 64
    if shape.kind == "int8":
        return Matrix("int8", (jax.random.randint(keys[0], of_codes, -127, 128, jnp.int8), scale))
    # Without the highest bit of their exponents all bits are numbers, and nothing wider is made on the way.
    bits = jax.random.bits(keys[0], of_codes, jnp.uint8) & jnp.uint8(0xBF)
    return Matrix("fp8", (lax.bitcast_convert_type(bits, jnp.float8_e4m3fn), scale))


def _copies(shape: Shape) -> int:
    """So many that none is still in a cache when its turn comes again."""
    bits = {"float": 16, "table": 16, "int8": 8, "fp8": 8, "int4": 5}[shape.kind]
    return -(-MOST_BYTES * 8 // (shape.outputs * shape.inputs * bits))


def _each(way: Kernel, kind: Kind, around: Around, x: jax.Array, many: list[tuple[jax.Array, ...]]) -> list[jax.Array]:
    return [way(x, Matrix(kind, leaves), around) for leaves in many]


def _fastest(way: Callable[..., Any], *given: Any) -> float:
    """Seconds of a call. The first one compiles."""
    jax.block_until_ready(way(*given))
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        jax.block_until_ready(way(*given))
        seconds.append(time.perf_counter() - began)
    return min(seconds)
