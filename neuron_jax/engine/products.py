"""Which kernel multiplies by a model's matrices where a step has few tokens: one that gives what XLA gives, and is faster.

Knows matrices by their shapes, no model and no requests. A kernel is used for as many rows as it is right and no slower
for; where it fails, by whatever exception, XLA computes the product.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from attrs import asdict, evolve, frozen
from jax import lax
from jax.sharding import Mesh

from models import matrices, mixtures
from models.dense.record import Activation
from models.matrices import Around, Kernel, Kind, Matrix, Shape
from models.mixtures import MixtureShape
from models.native.ops import Norm
from models.spread import over
from neuron_jax.engine import trials
from neuron_jax.engine.attention.trial import tolerance
from neuron_jax.engine.trials import Trial, Verdict

log = logging.getLogger("neuron.engine")

ROWS = (1, 16, 64)
"""Of a trial: what holds for so many is taken to hold for fewer, down to the next."""

MOST_BYTES = 256 << 20
"""Of the matrices that a trial reads one after the other: more than any GPU's cache holds."""

BITS: Mapping[Kind, int] = {"float": 16, "table": 16, "exact": 32, "int8": 8, "fp8": 8, "int4": 5, "mxfp4": 4}
"""Of a weight, with its part of a scale."""

CALLS = 5
"""Of which the fastest counts: what is slower was disturbed."""


S = TypeVar("S")


@frozen
class Products:
    """`models.matrices.Choose`: the kernel for up to `most` rows of a matrix."""

    kernel: Kernel
    most: Mapping[Shape, int]

    def __call__(self, shape: Shape, rows: int) -> Kernel | None:
        return self.kernel if rows <= self.most.get(shape, 0) else None

    def on(self, mesh: Mesh) -> "Products":
        """For matrices that lie on all its devices."""
        return self if mesh.size == 1 else evolve(self, kernel=over(mesh, self.kernel))


def shapes_in(trace: Callable[[], object]) -> tuple[set[Shape], set[MixtureShape]]:
    """The matrices of which `trace` asks for products, and the mixtures of experts."""
    seen: set[Shape] = set()
    mixed: set[MixtureShape] = set()
    with (
        matrices.computing(lambda shape, _: seen.add(shape)),
        mixtures.computing(lambda shape, _: mixed.add(shape)),
    ):
        trace()
    return seen, mixed


def serves(device: Any, dtype: Any) -> bool:
    """Whether there are kernels at all: for GPUs from Ampere on, and numbers of 16 bits."""
    return device.platform == "gpu" and float(device.compute_capability) >= 8 and jnp.dtype(dtype).itemsize == 2


def choose(device: Any, dtype: Any, shapes: Collection[Shape], *, tried: bool = True) -> Products | None:
    """The kernels for `shapes` on `device`, or None where XLA computes everything. Those that are not `tried`, in another
    process, are used for as many rows as they were made for.
    """
    if not serves(device, dtype):
        return None
    try:  # later versions of JAX have no Triton
        from models import few_rows
    except ImportError:
        log.info("products: xla; this JAX has no Triton")
        return None
    able = [shape for shape in sorted(shapes, key=str) if few_rows.refuses(shape) is None]
    found = [Verdict(rows=few_rows.most_rows(shape)) for shape in able]
    if tried:
        asked = [Trial("products", {"dtype": jnp.dtype(dtype).name, "shape": asdict(shape)}) for shape in able]
        found = trials.tried(asked, device)
    for shape, one in zip(able, found, strict=True):
        trials.say("products: %s up to %d rows%s", _named(shape), one.rows, f"; {one.why}" if one.why else "")
    return Products(few_rows.product, {shape: one.rows for shape, one in zip(able, found, strict=True)})


def verdict(asked: Mapping[str, Any], device: Any) -> Verdict:
    """On the kernel for a matrix that another process asked to have tried here, on its default device."""
    from models import few_rows

    del device
    shape, seconds = Shape(**asked["shape"]), partial(measured, few_rows.product, jnp.dtype(asked["dtype"]))
    return compared(shape, seconds, [rows for rows in ROWS if rows <= few_rows.most_rows(shape)])


def _named(shape: Shape) -> str:
    return f"{shape.kind} {shape.outputs}x{shape.inputs}{' gated' if shape.gated else ''}"


def compared(shape: S, seconds: Callable[[S, int], tuple[float, float]], every: Sequence[int] = ROWS) -> Verdict:
    """Up to how many rows, of `every` that is tried, a kernel is no slower than XLA; 0 where it is not right. `seconds`: its
    own, and XLA's."""
    most = 0
    for rows in every:
        try:
            ours, theirs = seconds(shape, rows)
        except Exception as error:  # whatever a compiler says no with
            log.warning("%s failed its trial with %d rows", shape, rows, exc_info=True)
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
    return fastest(ours, x, many), fastest(theirs, x, many)


def some_matrix(shape: Shape, dtype: Any, seed: int) -> Matrix:
    """Of random values."""
    of_codes = (shape.outputs, shape.inputs)
    leaves: list[tuple[tuple[int, ...], Any]]
    match shape.kind:
        case "float" | "exact":
            leaves = [((shape.inputs, shape.outputs), dtype if shape.kind == "float" else jnp.float32)]
        case "table":
            leaves = [(of_codes, dtype)]
        case "int4":
            groups = ((shape.outputs, shape.inputs // matrices.GROUP), jnp.float16)
            leaves = [((shape.outputs, shape.inputs // 2), jnp.uint8), groups, groups]
        case "mxfp4":
            exponents = (shape.outputs, shape.inputs // matrices.GROUP)
            packed, scale = some_values((shape.outputs, shape.inputs // 2), jnp.uint8, seed), some_exponents(exponents)
            return Matrix(shape.kind, (packed, scale))
        case _:
            leaves = [(of_codes, jnp.int8 if shape.kind == "int8" else jnp.float8_e4m3fn), (of_codes[:1], jnp.float32)]
    return Matrix(shape.kind, tuple(some_values(*leaf, seed=8 * seed + at) for at, leaf in enumerate(leaves)))


def some_values(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> jax.Array:
    """Random ones: codes, or small floats. Nothing wider is made on the way."""
    key = jax.random.key(seed)
    if dtype == jnp.int8:
        return jax.random.randint(key, shape, -127, 128, jnp.int8)
    if dtype == jnp.uint8:
        return jax.random.bits(key, shape, jnp.uint8)
    if dtype == jnp.float8_e4m3fn:
        # Without the highest bit of their exponents all bits are numbers, with the lowest none that CPUs take for zero.
        bits = jax.random.bits(key, shape, jnp.uint8) & jnp.uint8(0xBF) | jnp.uint8(0x08)
        return lax.bitcast_convert_type(bits, jnp.float8_e4m3fn)
    return jax.random.normal(key, shape, dtype) / 64


def some_exponents(shape: tuple[int, ...]) -> jax.Array:
    """Of MXFP4's scales, as weights have them: 2^-8 to 2^-5."""
    return jax.random.randint(jax.random.key(0), shape, 119, 123, jnp.uint8)


def _copies(shape: Shape) -> int:
    """So many that none is still in a cache when its turn comes again."""
    return -(-MOST_BYTES * 8 // (shape.outputs * shape.inputs * BITS[shape.kind]))


def _each(way: Kernel, kind: Kind, around: Around, x: jax.Array, many: list[tuple[jax.Array, ...]]) -> list[jax.Array]:
    return [way(x, Matrix(kind, leaves), around) for leaves in many]


def fastest(way: Callable[..., Any], *given: Any) -> float:
    """Seconds of a call. The first one compiles."""
    jax.block_until_ready(way(*given))
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        jax.block_until_ready(way(*given))
        seconds.append(time.perf_counter() - began)
    return min(seconds)
