"""Which kernel computes a model's products where a step has few tokens: tried on the device against what XLA makes of them.

Knows matrices by their shapes, no model and no requests. A kernel is used for as many rows as it is right and no slower
for; where it fails, by whatever exception, XLA computes the product.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import asdict, frozen
from jax import lax

from models import matrices
from models.dense.record import Activation
from models.matrices import Around, Kernel, Kind, Matrix, Shape
from models.native.ops import Norm
from neuron_jax.engine import trials
from neuron_jax.engine.attention.trial import tolerance
from neuron_jax.engine.trials import Trial, Verdict

log = logging.getLogger("neuron.engine")

ROWS = (1, 16, 64)
"""Of a trial: what holds for so many is taken to hold for fewer, down to the next."""

MOST_BYTES = 256 << 20
"""Of the matrices that a trial reads one after the other: more than any GPU's cache holds."""

CALLS = 5
"""Of which the fastest counts: what is slower was disturbed."""


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


def choose(device: Any, dtype: Any, shapes: Collection[Shape], *, tried: bool = True) -> Products | None:
    """The kernels for `shapes` on `device`, or None where XLA computes everything. Those that are not `tried`, in another
    process, are used for as many rows as they were made for.
    """
    if device.platform != "gpu" or float(device.compute_capability) < 8 or jnp.dtype(dtype).itemsize != 2:
        return None
    try:  # later versions of JAX have no Triton
        from models import few_rows
    except ImportError:
        log.info("products: xla; this JAX has no Triton")
        return None
    able = [shape for shape in sorted(shapes, key=str) if few_rows.refuses(shape) is None]
    found = [Verdict(rows=few_rows.MOST_ROWS)] * len(able)
    if tried:
        asked = [Trial("products", {"dtype": jnp.dtype(dtype).name, "shape": asdict(shape)}) for shape in able]
        found = trials.tried(asked, device)
    for shape, one in zip(able, found, strict=True):
        log.info("products: %s up to %d rows%s", _named(shape), one.rows, f"; {one.why}" if one.why else "")
    return Products(few_rows.product, {shape: one.rows for shape, one in zip(able, found, strict=True)})


def verdict(asked: Mapping[str, Any], device: Any) -> Verdict:
    """On the kernel for a matrix that another process asked to have tried here, on its default device."""
    from models import few_rows

    del device
    return compared(Shape(**asked["shape"]), partial(measured, few_rows.product, jnp.dtype(asked["dtype"])))


def _named(shape: Shape) -> str:
    return f"{shape.kind} {shape.outputs}x{shape.inputs}{' gated' if shape.gated else ''}"


def compared(shape: Shape, seconds: Callable[[Shape, int], tuple[float, float]]) -> Verdict:
    """Up to how many rows the kernel is no slower than XLA; 0 where it is not right. `seconds`: its own, and XLA's."""
    most = 0
    for rows in ROWS:
        try:
            ours, theirs = seconds(shape, rows)
        except Exception as error:  # whatever a compiler says no with
            log.warning("%s failed its trial with %d rows", _named(shape), rows, exc_info=True)
            why = " ".join(f"with {rows} rows {type(error).__name__}: {error}".split())[:200]
            return Verdict(why, most, final=isinstance(error, WrongError))
        if ours > theirs:
            break
        most = rows
    return Verdict(rows=most)


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
