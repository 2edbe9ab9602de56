"""Kernels for few rows, in Pallas' interpreter, against what XLA makes of the same matrices and layers."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import matrices
from models.dense.record import Activation
from models.linears import Linears, linear_store, table_store
from models.linears_xla import store_mxfp4
from models.matrices import PACKED, Around, Kind, Matrix, Shape, computing
from models.native.ops import Norm
from models.nn import Dims, RMSNorm
from models.products import unpack_int4
from models.rounding import fp8_by_channel, int8_by_channel
from models.storage import MXFP4
from tests.fakes.weight_files import random_blocks
from tests.models.test_linears_xla import with_leaves

few_rows = pytest.importorskip("models.few_rows", reason="this JAX has no Triton", exc_type=ImportError)

OUT, IN = 64, 1024
"""Inputs of more than one step of either kernel."""

KINDS: list[Kind] = ["float", "table", "int8", "fp8", "int4", "mxfp4"]
rng = np.random.default_rng(3)


def matrix_of(kind: Kind, dtype: Any, inputs: int = IN) -> tuple[Matrix, np.ndarray]:
    """And its values, float32 [O, I]."""
    whole = rng.standard_normal((OUT, inputs)).astype(np.float32)
    if kind == "exact":
        return Matrix(kind, (jnp.asarray(whole.T),)), whole
    if kind in {"float", "table"}:
        stored = jnp.asarray(whole, dtype)
        return Matrix(kind, (stored.T if kind == "float" else stored,)), np.asarray(stored, np.float32)
    if kind == "int4":
        leaves = linear_store(1, "int4")(whole)
        matrix = Matrix(kind, tuple(jnp.asarray(leaves[name]) for name in ("kernel", "scale", "offset")))
        return matrix, np.asarray(unpack_int4(*matrix.leaves))
    if kind == "mxfp4":
        blocks = random_blocks(MXFP4, OUT, inputs)
        leaves = store_mxfp4(blocks, (OUT, inputs), 1)
        return Matrix(kind, tuple(jnp.asarray(leaves[name]) for name in ("kernel", "scale"))), blocks.dequantize()
    codes, scale = (int8_by_channel if kind == "int8" else fp8_by_channel)(whole, 1)
    return Matrix(kind, (jnp.asarray(codes), jnp.asarray(scale))), codes.astype(np.float32) * scale[:, None]


def wanted(x: jax.Array, values: np.ndarray, around: Around) -> np.ndarray:
    """By numpy, in float32."""
    wide = np.asarray(x, np.float32)
    if around.norm is not None:
        wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + around.norm.epsilon) * np.asarray(around.norm.weight)
    y = wide @ values.T
    if around.bias is not None:
        y = y + np.asarray(around.bias, np.float32)
    if around.activation is not None:
        y = np.asarray(matrices.activate(around.activation, *np.split(y, 2, axis=1)))  # type: ignore[arg-type]
    return y if around.residual is None else y + np.asarray(around.residual, np.float32)


@pytest.mark.parametrize(
    ("kind", "rows", "dtype"),
    [(kind, *size) for kind in KINDS for size in ((1, jnp.float32), (17, jnp.bfloat16))]
    + [(kind, 5, jnp.float32) for kind in PACKED],
)
def test_products_are_those_of_the_stored_values(kind: Kind, rows: int, dtype: Any) -> None:
    """Of a row alone, and of rows padded to 16 and to 32; with the norm before and what stands behind: a bias and a gate, or
    the sum with what was there."""
    matrix, values = matrix_of(kind, dtype)
    x = jnp.asarray(rng.standard_normal((rows, IN)), dtype)
    norm, bias = Norm(jnp.asarray(rng.random(IN), jnp.float32), 1e-5), jnp.asarray(rng.standard_normal(OUT), dtype)
    residual = jnp.asarray(rng.standard_normal((rows, OUT)), dtype)
    for around in (Around(norm, bias, Activation("silu")), Around(residual=residual)):
        got = np.asarray(few_rows.product(x, matrix, around, interpret=True), np.float32)
        true = wanted(x, values, around)

        assert np.abs(got - true).max() <= np.abs(true).max() * (1e-5 if dtype == jnp.float32 else 1e-2)


@pytest.mark.parametrize("kind", ["float", "exact", "int8", *PACKED])
def test_a_row_reads_what_no_power_of_two_divides(kind: Kind) -> None:
    """In steps as large as any, of which the last is not full."""
    matrix, values = matrix_of(kind, jnp.float32, 320)
    x = jnp.asarray(rng.standard_normal((1, 320)), jnp.float32)
    around = Around(Norm(jnp.asarray(rng.random(320), jnp.float32), 1e-5))
    got = np.asarray(few_rows.product(x, matrix, around, interpret=True))
    true = wanted(x, values, around)

    assert np.abs(got - true).max() <= np.abs(true).max() * 1e-5


@pytest.mark.parametrize("kind", ["float", *PACKED])
def test_a_row_does_not_depend_on_those_beside_it(kind: Kind) -> None:
    """Not on how many there are either, as long as it is not alone."""
    matrix, _ = matrix_of(kind, jnp.bfloat16)
    x = jnp.asarray(rng.standard_normal((5, IN)), jnp.bfloat16)
    whole, part, other = (
        np.asarray(few_rows.product(given, matrix, Around(), interpret=True), np.float32)
        for given in (x, x[:2], x.at[2:].set(7))
    )

    assert (whole[:2] == part).all()
    assert (whole[:2] == other[:2]).all()


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        (Shape("float", 64, 256), False),
        (Shape("float", 48, 256), True),
        (Shape("int4", 64, 192), False),
        (Shape("int4", 64, 160), True),
        (Shape("mxfp4", 64, 192), False),
        (Shape("int8", 64, 256, gated=True), False),
        (Shape("int8", 32, 256, gated=True), True),
    ],
)
def test_sizes_that_it_was_not_made_for_are_refused(shape: Shape, refused: bool) -> None:
    assert (few_rows.refuses(shape) is not None) == refused


@pytest.mark.parametrize("quant", ["none", "int8", "int4", "fp8"])
def test_layers_give_what_they_give_without_the_kernel(quant: str) -> None:
    """q, k and v; the way back with the sum; gate and up: each kind of layer as a network calls it, in one kernel each."""
    embed: Dims = ((256, "embed"),)
    mlp: Dims = ((1, "mlp"), (128, None))
    heads: Dims = ((2, "kv_heads"), (4, None), (32, None))
    x, made = jnp.asarray(rng.standard_normal((2, 256)), jnp.float32), []
    norm = with_leaves(RMSNorm(256, 1e-5), {"weight": rng.random(256).astype(np.float32)})

    def layer(name: str, inputs: Dims, outputs: Dims, *, bias: bool = False) -> Any:
        whole = rng.standard_normal((*(n for n, _ in outputs), *(n for n, _ in inputs))).astype(np.float32)
        leaves = dict(linear_store(len(inputs), quant)(whole))
        if bias:
            leaves["bias"] = rng.standard_normal([n for n, _ in outputs]).astype(np.float32)
        return with_leaves(Linears(quant, jnp.float32)(name, inputs, outputs, bias=bias), leaves)

    qkv, out = layer("qkv", embed, heads, bias=True), layer("out", heads, embed)
    gate_up, table = (
        layer("gate_up", embed, (mlp[0], (2, None), mlp[1])),
        Linears(quant, jnp.float32).table("head", 64, 256),
    )
    with_leaves(table, dict(table_store(quant)(rng.standard_normal((64, 256)).astype(np.float32))))

    def run() -> list[jax.Array]:
        y = qkv(x, norm)
        return [y, out.add(y, x), gate_up.gated(x, Activation("silu"), norm), table.logits(x)]

    def note(shape: Shape, rows: int) -> Any:
        made.append((shape.kind, rows))
        return partial(few_rows.product, interpret=True)

    plain = run()
    with computing(note):
        ours = run()

    assert [rows for _, rows in made] == [2] * 4
    for got, true in zip(ours, plain, strict=True):
        # Only the kernel leaves activations as they are where weights are int8.
        np.testing.assert_allclose(
            got, true, atol=float(np.abs(true).max()) * (3e-2 if quant in {"int8", "int4"} else 1e-5)
        )
