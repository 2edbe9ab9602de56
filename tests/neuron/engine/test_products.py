"""Which kernel computes products, on devices that are made up: tried, timed against XLA, and done without where it fails."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from models import matrices
from models.matrices import Around, Matrix, Shape
from neuron_jax.engine import products
from neuron_jax.engine.buckets import StepKey
from neuron_jax.engine.products import Products, WrongError
from neuron_jax.engine.runner import Runner

GPU = SimpleNamespace(platform="gpu", compute_capability="8.6")
SHAPE = Shape("int4", 64, 256)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (SimpleNamespace(platform="cpu"), jnp.bfloat16),
        (SimpleNamespace(platform="gpu", compute_capability="7.5"), jnp.bfloat16),
        (GPU, jnp.float32),
    ],
)
def test_xla_computes_everything(device: Any, dtype: Any) -> None:
    """On CPUs, on cards before Ampere, and where numbers are float32."""
    assert products.choose(device, dtype, [SHAPE]) is None


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        ({1: (1, 2), 16: (2, 2), 64: (3, 4)}, 64),
        ({1: (1, 2), 16: (3, 2), 64: (3, 4)}, 1),
        ({1: (3, 2), 16: (1, 2), 64: (3, 4)}, 0),
        ({1: (1, 2), 16: WrongError("differs"), 64: (3, 4)}, 1),
        ({1: RuntimeError("out of shared memory")}, 0),
    ],
)
def test_a_kernel_serves_as_many_rows_as_it_is_right_and_no_slower_for(
    seconds: dict[int, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(kernel: Any, dtype: Any, shape: Shape, rows: int) -> tuple[float, float]:
        if isinstance(seconds[rows], Exception):
            raise seconds[rows]
        ours, theirs = seconds[rows]
        return ours, theirs

    monkeypatch.setattr(products, "measured", measured)
    chosen = products.choose(GPU, jnp.bfloat16, [SHAPE, Shape("float", 33, 64)])

    assert chosen is not None
    assert chosen.most == {SHAPE: most}  # the other is none that it was made for
    assert [chosen(SHAPE, rows) is not None for rows in (1, 64, 65)] == [most >= 1, most >= 64, False]


def test_what_is_not_tried_serves_what_it_was_made_for() -> None:
    chosen = products.choose(GPU, jnp.bfloat16, [SHAPE], tried=False)

    assert isinstance(chosen, Products)
    assert chosen(SHAPE, 64) is not None


@pytest.mark.parametrize("kind", ["float", "table", "int8", "fp8", "int4"])
def test_a_trial_finds_what_is_wrong(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does what XLA does passes, with matrices of every format; one that forgets the norm does not."""
    monkeypatch.setattr(products, "MOST_BYTES", 1)
    monkeypatch.setattr(products, "CALLS", 1)

    def normless(x: jax.Array, matrix: Matrix, around: Around) -> jax.Array:
        return matrices.product(x * 2, matrix, Around())

    shape = Shape(kind, 64, 128)
    ours, theirs = products.measured(matrices.product, jnp.float32, shape, 2)

    assert min(ours, theirs) > 0
    with pytest.raises(WrongError, match="differs by"):
        products.measured(normless, jnp.float32, shape, 2)


def test_a_program_tells_its_matrices_and_computes_them_with_what_was_chosen(runner: Runner) -> None:
    """q, k and v; out; gate and up; down; and the head: of each asked once a layer, and none of two devices or a stack."""
    program, key = runner.program, StepKey(4, 4)
    found = program.matrices(key)
    rows = []

    def note(shape: Shape, count: int) -> None:
        rows.append((shape, count))

    noted = program.__class__(program.model, program.mesh, program.shapes, program.attention, products=note)
    noted.lower(key)

    assert {shape for shape, _ in rows} == found
    assert {count for _, count in rows} == {4}
    assert [shape.gated for shape in found].count(True) == 1
    assert len(found) >= 4
