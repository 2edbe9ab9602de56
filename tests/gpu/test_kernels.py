"""The GPU's kernels against dense float64 attention and XLA's products, and which of them an 8B model gets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import few_rows
from models.matrices import Shape
from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine import products
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.flash import attend_decode
from neuron_jax.engine.attention.gathered import attend_gathered
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.reference import BLOCK, attend_blocks
from neuron_jax.engine.attention.trial import Case
from tests.fakes.paged_case import paged_case

pytestmark = pytest.mark.gpu

PAGE = 16
LENGTHS = [1, PAGE - 1, PAGE, PAGE + 1, 63, 64, 65, BLOCK, BLOCK + 1, 256, 257, 512, 0]
HEADS = [(2, 3, 64), (1, 8, 80), (2, 1, 96), (1, 20, 128), (8, 4, 128)]
KERNELS: dict[str, Callable[..., jax.Array]] = {
    "xla": attend_blocks,
    "cudnn": attend_gathered,
    "pallas": attend_decode,
}


@pytest.mark.parametrize("kv", ["bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("window", [None, 5, 100])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(("kernel", "chunk"), [("xla", 1), ("cudnn", 1), ("pallas", 1), ("xla", 24), ("cudnn", 24)])
def test_kernels_are_dense_attention(
    kernel: str, chunk: int, heads: tuple[int, int, int], window: int | None, kv: str
) -> None:
    for lengths in [LENGTHS]:
        case = paged_case(lengths, chunk=chunk, heads=heads, window=window, kv=kv)
        q, cache, form = case.inputs(jnp.bfloat16)
        mixed = jax.jit(lambda q, cache: KERNELS[kernel](q, cache, form, **case.rows))(q, cache)  # noqa: B023
        got = np.asarray(mixed.astype(jnp.float32))

        assert np.isfinite(got).all()
        assert np.abs(got - case.stored)[case.real].max() < 0.03 * np.abs(case.stored).max()


@pytest.mark.parametrize("kv", ["bfloat16", "int8", "fp8"])
def test_an_8b_model_gets_the_kernels_that_were_made_for_it(gpu: Any, kv: str) -> None:
    choice = choose(Case(make_mesh([gpu]), jnp.bfloat16, KVFormat(kv), 4096, PAGE, (PagedLayer(8, 4, 128, 128),)))

    assert choice.name == "pallas for decoding, xla for prompts", choice.reason


@pytest.mark.parametrize("rows", [1, 5, 16, 64])
@pytest.mark.parametrize("kind", ["float", "table", "int8", "fp8", "int4"])
def test_products_of_few_rows_are_those_of_xla(gpu: Any, kind: Any, rows: int) -> None:
    """Of an 8B model's shapes, gated and not. Raises where they differ."""
    for shape in (Shape(kind, 6144, 4096), Shape(kind, 28672, 4096, gated=True), Shape(kind, 4096, 14336)):
        ours, theirs = products.measured(few_rows.product, jnp.bfloat16, shape, rows)

        print(f"{shape}, {rows} rows: {1e6 * ours:.0f} us, XLA {1e6 * theirs:.0f} us")


@pytest.mark.parametrize("kv", ["bfloat16", "int8"])
def test_a_row_does_not_depend_on_its_neighbours(kv: str) -> None:
    """Bit for bit, in the kernel that decodes."""
    many = paged_case([40, 1, 512, 257], kv=kv, heads=(2, 4, 128))
    q, cache, form = many.inputs(jnp.bfloat16)
    together = attend_decode(q, cache, form, **many.rows)
    rows = {name: part if name == "window" else part[:1] for name, part in many.rows.items()}

    assert (together[:1] == attend_decode(q[:1], cache, form, **rows)).all()
