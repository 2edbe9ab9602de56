"""Checkpoint tables: every tensor accounted for, parts in their places, storage in the layout that is wanted."""

import numpy as np
import pytest

from models.errors import ModelError
from models.mapping import Ignore, Part, Rule, check, load, store_as, store_kernel, unroll

FLOAT = np.dtype(np.float32)
RULES = (
    *unroll(
        [
            Rule("norm", (3,), FLOAT, (Part("n", (3,)),), store_as("weight")),
            Rule(
                "layers.{}.pair",
                (2, 4, 3),
                FLOAT,
                (Part("l.{}.a", (4, 3), (0,)), Part("l.{}.b", (2, 3), (1, slice(2)))),
                store_kernel(1, "none"),
            ),
        ],
        layers=2,
    ),
    Ignore(r"l\.\d+\.useless"),
)


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"n": (3,)} | {f"l.{i}.{name}": (rows, 3) for i in range(2) for name, rows in (("a", 4), ("b", 2))}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_parts_take_their_places_and_the_rest_is_zero() -> None:
    """Two tensors fuse into one kernel, in-dimension first; the place without a tensor stays zero."""
    given = tensors()
    kernel = load(RULES, given)["layers"][1]["pair"]["kernel"]

    assert kernel.shape == (3, 2, 4)
    np.testing.assert_array_equal(kernel[:, 0], given["l.1.a"].T)
    np.testing.assert_array_equal(kernel[:, 1, :2], given["l.1.b"].T)
    assert not kernel[:, 1, 2:].any()


def test_ignored_tensors_are_no_misfits() -> None:
    """A known useless tensor may be there or not."""
    shapes = {name: tensor.shape for name, tensor in tensors().items()}

    assert len(check(RULES, shapes)) == len(check(RULES, shapes | {"l.7.useless": (1,)})) == 3


def test_every_misfit_is_in_one_error() -> None:
    """Missing, misshapen and unknown tensors, each kind with its count and all its names."""
    shapes: dict[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in tensors().items()}
    del shapes["n"]
    shapes["l.0.a"] = (3, 4)
    shapes |= {f"odd.{i}": (1,) for i in range(10)}
    with pytest.raises(ModelError) as caught:
        check(RULES, shapes)
    missing, wrong, unknown = caught.value.misfits

    assert missing == "1 missing: n (3,)"
    assert wrong == "1 of a wrong shape: l.0.a is (3, 4), must be (4, 3)"
    assert unknown == "10 unknown: " + ", ".join(f"odd.{i}" for i in range(10))


def test_two_rules_for_one_tensor_are_our_bug() -> None:
    """A table that uses a tensor twice does not get past its first check."""
    with pytest.raises(AssertionError, match="two rules"):
        check([*RULES, RULES[0]], {name: tensor.shape for name, tensor in tensors().items()})
