"""The table of axes: names go where it says, and a clash is our bug."""

import jax
import pytest

from models.sharding import make_mesh, named_sharding, replicated


def test_axes_go_where_the_table_says() -> None:
    """Named and nameless dimensions; the mesh keeps the devices' order."""
    devices = jax.devices("cpu")[2:4]
    mesh = make_mesh(devices)

    assert mesh.devices.ravel().tolist() == devices
    assert tuple(named_sharding(mesh, ("embed", "kv_heads", None)).spec) == (None, ("ep", "tp"), None)
    assert replicated(mesh).is_fully_replicated


def test_two_dimensions_on_one_mesh_axis_are_our_bug() -> None:
    """Caught when the sharding is made, not inside the compiler."""
    with pytest.raises(AssertionError, match="two dimensions"):
        named_sharding(make_mesh(jax.devices("cpu")[:2]), ("vocab", "mlp"))


def test_experts_have_an_axis_of_their_own() -> None:
    """They are split over one axis, what is within each over the other, all else over both."""
    mesh, plain = make_mesh(jax.devices("cpu")[:4], 2), make_mesh(jax.devices("cpu")[:4])

    assert [dict(one.shape) for one in (plain, mesh)] == [{"ep": 1, "tp": 4}, {"ep": 2, "tp": 2}]
    assert named_sharding(mesh, ("experts", "expert_mlp", "embed")).shard_shape((6, 8, 3)) == (3, 4, 3)
    assert named_sharding(mesh, ("mlp", None)).shard_shape((8, 3)) == (2, 3)
    assert named_sharding(plain, ("experts", "expert_mlp", "embed")).shard_shape((6, 8, 3)) == (6, 2, 3)
