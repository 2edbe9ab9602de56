"""int4 and fp8 layers against float ones over the same weights: what is stored, padded groups, sharded groups, tables."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models import mapping
from models.linears import Linears, linear_store, table_store
from models.linears_xla import NARROW
from models.nn import Dims
from models.registry import build
from models.rounding import INT4, int4_by_group
from models.storage import Blocks
from tests.fakes.plain_pass import full_logits
from tests.fakes.tiny_llama import CONFIG
from tests.fakes.weight_files import random_tensors

RNG = np.random.default_rng(12)
SHAPES = [
    ((("embed", 64),), (("mlp", 10),)),
    ((("embed", 50),), (("kv_heads", 2), (None, 3), (None, 8))),
    ((("kv_heads", 3), (None, 2), (None, 20)), (("embed", 16),)),
]


def dims(named: Any) -> Dims:
    return tuple((size, axis) for axis, size in named)


def sizes(named: Any) -> tuple[int, ...]:
    return tuple(size for _, size in named)


def with_leaves(module: Any, leaves: dict[str, np.ndarray]) -> Any:
    """`module` with values: of the shapes and dtypes that it said."""
    for name, leaf in leaves.items():
        said = getattr(module, name).get_value()
        assert (said.shape, said.dtype) == (leaf.shape, leaf.dtype), name
        setattr(module, name, nnx.Param(jnp.asarray(leaf)))
    return module


def stored_values(whole: np.ndarray, inputs: int, quant: str) -> np.ndarray:
    """[O, I] float64: what the stored weights are worth, by another way than the layers'."""
    first = whole.shape[whole.ndim - inputs] if inputs > 1 else 1
    outputs = int(np.prod(whole.shape[: whole.ndim - inputs]))
    if quant == "int4":
        blocks: Blocks = int4_by_group(whole.reshape(outputs * first, -1))
        return blocks.dequantize().astype(np.float64).reshape(outputs, -1)
    flat = whole.reshape(outputs, -1)
    scale = np.abs(flat).max(1, keepdims=True) / np.float32(448)
    return (flat / scale).astype(jnp.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quant", NARROW)
def test_products_are_those_of_the_stored_values(quant: str, shape: Any) -> None:
    """Also where the last group of 32 is not full, and where groups must not reach over a device's share."""
    inputs, outputs = shape
    whole = RNG.standard_normal((*sizes(outputs), *sizes(inputs))).astype(np.float32)
    layer = Linears(quant, jnp.float32)("x", dims(inputs), dims(outputs), bias=False)
    leaves = linear_store(len(inputs), quant)(whole)
    x = RNG.standard_normal((4, *sizes(inputs))).astype(np.float32)
    residual = RNG.standard_normal((4, *sizes(outputs))).astype(np.float32)
    wanted = (x.reshape(4, -1) @ stored_values(whole, len(inputs), quant).T).reshape(4, *sizes(outputs))
    layer = with_leaves(layer, leaves)

    np.testing.assert_allclose(layer(jnp.asarray(x)), wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        layer.add(jnp.asarray(x), jnp.asarray(residual)), wanted + residual, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("quant", NARROW)
def test_weights_are_near_what_they_were(quant: str) -> None:
    """A sixteenth of each weight in fp8; half a step of its group's range in int4."""
    whole = RNG.standard_normal((8, 64)).astype(np.float32)
    found = stored_values(whole, 1, quant)
    groups = whole.reshape(8, -1, INT4.group)
    step = np.repeat((groups.max(-1) - groups.min(-1)) / 15, INT4.group, 1)

    assert (np.abs(found - whole) <= (np.abs(whole) / 16 + 1e-3 if quant == "fp8" else step)).all()


@pytest.mark.parametrize("quant", NARROW)
def test_tables_keep_eight_bits(quant: str) -> None:
    """Rows looked up are what the logits are computed with, and near the weights, in either format."""
    whole = RNG.standard_normal((30, 64)).astype(np.float32)
    table = with_leaves(Linears(quant, jnp.float32).table("embed", 30, 64), table_store(quant)(whole))
    rows = np.asarray(table.rows(jnp.arange(30)))
    x = RNG.standard_normal((2, 64)).astype(np.float32)

    assert (np.abs(rows - whole) <= (np.abs(whole) / 16 + 2e-2)).all()
    np.testing.assert_allclose(table.logits(jnp.asarray(x)), x @ rows.T, atol=0.3)


@pytest.mark.parametrize(("quant", "most"), [("fp8", 0.25), ("int4", 0.4)])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_model_stays_close(quant: str, most: float, devices: int) -> None:
    """Whole and padded for two devices: the logits move by a part of their spread."""
    exact = build(CONFIG, dtype=jnp.float32)
    tensors = random_tensors(exact)
    model = build(CONFIG, tensor_parallel=devices, quant=quant, dtype=jnp.float32)
    ids = [int(id_) for id_ in RNG.integers(0, 300, 40)]
    one, other = (
        full_logits(built, jax.tree.map(jnp.asarray, mapping.load(built.rules, tensors)), ids)
        for built in (exact, model)
    )

    off = np.sqrt(np.mean((one - other) ** 2)) / one.std()
    assert 1e-4 < off < most


@pytest.mark.parametrize("quant", NARROW)
def test_a_model_takes_fewer_bytes(quant: str) -> None:
    """Five bits a weight with scale and offset, or eight: the tables are eight, and norms stay float32."""
    config = CONFIG | {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    bits = {"int4": (5, 8), "fp8": (8, 8)}[quant]
    model, whole = (build(config, quant=name, dtype=jnp.float32) for name in (quant, "none"))
    sizes = [{name: _bytes(tree) for name, tree in built.param_specs.items()} for built in (model, whole)]

    assert sizes[0]["layers"] == pytest.approx(sizes[1]["layers"] * bits[0] / 32, rel=0.05)
    assert sizes[0]["embed"] == pytest.approx(sizes[1]["embed"] * bits[1] / 32, rel=0.05)


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: hasattr(leaf, "nbytes")))
