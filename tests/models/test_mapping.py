"""Checkpoint tables: every tensor accounted for, parts in their places, storage in the layout that is wanted."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from attrs import evolve

from models.errors import ModelError
from models.mapping import Ignore, Part, Rule, check, load, store_as, store_kernel, unroll
from models.storage import Blocks, Storage, storage_of
from tests.fakes.weight_files import random_blocks

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


Q4 = Storage(4, 32, offset=True, half=True)
Q8 = Storage(8, 16)
PAIR = Rule(
    "pair",
    (2, 4, 64),
    None,
    (
        Part("a", (4, 64), (0,), lambda rows: rows[::-1]),
        Part("b", (2, 64), (1, slice(2)), lambda rows: rows.reshape(2, 1, -1)),
    ),
    lambda whole: {"whole": whole},
)
TURNED = Rule("turned", (4, 2, 2, 16), None, (Part("a", (4, 64)),), lambda whole: {"whole": whole}, inputs=3)


def assembled(rule: Rule, tensors: dict[str, np.ndarray | Blocks]) -> np.ndarray | Blocks:
    """What the rule's store is given, which is of the storage that was foretold."""
    whole: np.ndarray | Blocks = load([rule], tensors)[rule.path]["whole"]
    stored = {
        name: tensor.storage if isinstance(tensor, Blocks) else storage_of(tensor.dtype)
        for name, tensor in tensors.items()
    }

    assert rule.storage(stored) == (whole.storage if isinstance(whole, Blocks) else storage_of(whole.dtype))
    return whole


@pytest.mark.parametrize(("one", "other"), [(Q4, Q4), (Q8, Q8), (Q4, Q8), (Q8, Q4)])
def test_blocks_take_their_places_as_arrays_do(one: Storage, other: Storage) -> None:
    """Fused parts of one storage or two, rows turned and padded, hold what the same rule makes of their floats."""
    blocks = {"a": random_blocks(one, 4), "b": random_blocks(other, 2, seed=1)}
    found = assembled(PAIR, blocks)
    floats = assembled(PAIR, {name: tensor.dequantize() for name, tensor in blocks.items()})

    assert isinstance(found, Blocks)
    assert isinstance(floats, np.ndarray)
    np.testing.assert_array_equal(found.dequantize(), floats.reshape(8, 64))
    assert not floats[1, 2:].any()


def test_several_in_dimensions_are_one_row_of_blocks() -> None:
    """Columns in their own order need no arranging, however many dimensions they stand for."""
    blocks = random_blocks(Q4, 4)
    found = assembled(TURNED, {"a": blocks})
    floats = assembled(TURNED, {"a": blocks.dequantize()})

    assert isinstance(found, Blocks)
    np.testing.assert_array_equal(found.dequantize(), blocks.dequantize())
    np.testing.assert_array_equal(floats, blocks.dequantize().reshape(4, 2, 2, 16))


def test_moved_columns_make_blocks_floats() -> None:
    """A column that leaves its group loses its scale, so the whole becomes float32."""
    (part,) = TURNED.parts
    turned = evolve(part, arrange=lambda tensor: tensor[:, ::-1], moves_columns=True)
    blocks = random_blocks(Q4, 4)
    found = assembled(evolve(TURNED, parts=(turned,)), {"a": blocks})

    np.testing.assert_array_equal(found, blocks.dequantize()[:, ::-1].reshape(4, 2, 2, 16))


def test_blocks_beside_floats_become_floats() -> None:
    """A file may keep one of three fused tensors in float16."""
    blocks, floats = random_blocks(Q4, 4), np.ones((2, 64), np.float16)
    found = assembled(PAIR, {"a": blocks, "b": floats})

    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found[0], blocks.dequantize()[::-1])
    np.testing.assert_array_equal(found[1, :2], floats)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_floats_stay_narrow(dtype: Any) -> None:
    """Two bytes in the file are two bytes in the canonical array; one wide part widens it."""
    narrow = {"a": np.ones((4, 64), dtype), "b": np.ones((2, 64), dtype)}

    assert assembled(PAIR, narrow).dtype == dtype
    assert assembled(PAIR, narrow | {"b": np.ones((2, 64), np.float32)}).dtype == np.float32


def test_a_dtype_asked_for_is_what_blocks_become() -> None:
    """A rule with a dtype gets floats of it whatever the checkpoint stores."""
    blocks = random_blocks(Q8, 4)
    found = assembled(evolve(TURNED, dtype=np.dtype(np.float32)), {"a": blocks})

    np.testing.assert_array_equal(found, blocks.dequantize().reshape(4, 2, 2, 16))


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


def test_two_rules_for_a_tensor_of_one_parameter_are_our_bug() -> None:
    """Two parameters may be made of one tensor."""
    with pytest.raises(AssertionError, match="two rules"):
        check([*RULES, RULES[0]], {name: tensor.shape for name, tensor in tensors().items()})


def test_a_rule_takes_the_parts_that_a_checkpoint_has_the_most_of() -> None:
    """And where it has none, those that it names first, which is what `check` then misses."""
    both = Rule("w", (2, 3), FLOAT, (Part("a.0", (3,), (0,)), Part("a.1", (3,), (1,))), store_as("w"))
    rule = evolve(both, others=((Part("a", (2, 3)),),))

    assert [part.name for part in rule.among({"a"}).parts] == ["a"]
    assert [part.name for part in rule.among({"a.1", "b"}).parts] == ["a.0", "a.1"]
    assert rule.among(()).parts == both.parts
    assert np.array_equal(load([rule], {"a": np.ones((2, 3), np.float32)})["w"]["w"], np.ones((2, 3)))
    with pytest.raises(ModelError, match=r"2 missing: a.0 \(3,\), a.1 \(3,\)"):
        check([rule], {})


def test_a_missing_tensor_is_left_to_the_check() -> None:
    assert PAIR.storage({"a": Q8}) == storage_of(np.dtype(np.float32))


def test_thousands_of_misfits_are_counted() -> None:
    names = {f"t.{n}": (1,) for n in range(700)}
    with pytest.raises(ModelError, match=r"700 unknown: t\.0, .*t\.499, and 200 more"):
        check([], names)
