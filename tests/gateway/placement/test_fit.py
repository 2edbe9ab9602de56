"""Whether a model fits: devices counted and chosen, sizes from the nearest truth."""

from typing import Any

import pytest

from cortex_gateway.placement import fit
from cortex_gateway.placement.snapshot import Device, Membership, ModelConfig, Node, Replica


def node(*free: int, total: int = 10_000, **more: Any) -> Node:
    devices = tuple(
        Device(index=index, vram_total_mb=total, vram_free_mb=mb, vram_used_mb=total - mb)
        for index, mb in enumerate(free)
    )
    return Node(name="a", endpoint="http://a", healthy=True, devices=devices, **more)


def need(mb: int | None, shards: int = 1, *, proven: bool = False) -> fit.Need:
    return fit.Need(shards=shards, per_device_mb=mb, proven=proven)


@pytest.mark.parametrize(
    ("free", "needed", "chosen"),
    [
        pytest.param((5000, 9000), need(4000), (1,), id="the freest, not the first big enough"),
        pytest.param((5000, 5000), need(4000), (0,), id="of equals the first"),
        pytest.param((5000, 9000, 7000), need(6000, 2), (1, 2), id="two freest, told in order"),
        pytest.param((5000, 9000), need(6000, 2), None, id="the second of two is too full"),
        pytest.param((5000,), need(1, 2), None, id="too few devices"),
        pytest.param((10,), need(None), (0,), id="an unknown size is tried"),
        pytest.param((8000,), need(9000, proven=True), (0,), id="proven here, and nobody else is on it"),
        pytest.param((8000,), need(9000), None, id="not proven here"),
        pytest.param((8000,), need(8000), (0,), id="to the last MiB"),
    ],
)
def test_devices(free: tuple[int, ...], needed: fit.Need, chosen: tuple[int, ...] | None) -> None:
    """One case of choosing devices."""
    assert fit.devices_for(ModelConfig(id="m"), node(*free), needed) == chosen


def test_a_proven_model_does_not_squeeze_in_beside_others() -> None:
    """That it once had the device to itself says nothing about sharing it."""
    beside = Replica(model="n", status="loaded", devices=(0,))

    assert fit.devices_for(ModelConfig(id="m"), node(8000, replicas=(beside,)), need(9000, proven=True)) is None


def test_a_proven_model_may_take_what_others_leave() -> None:
    """It has the device to itself once those are gone, and beside what holds nothing."""
    beside = Replica(model="n", status="loaded", devices=(0,))
    lent = Membership(model="g", leader="b", devices=(0,))
    failed = Replica(model="o", status="failed", devices=(0,))

    def chosen(*gone: str, **more: Any) -> tuple[int, ...] | None:
        return fit.devices_for(ModelConfig(id="m"), node(8000, **more), need(9000, proven=True), without=gone)

    assert chosen(replicas=(beside,)) is None
    assert chosen("n", replicas=(beside,)) == (0,)
    assert chosen(members=(lent,)) is None
    assert chosen("g", members=(lent,)) == (0,)
    assert chosen(replicas=(failed,)) == (0,)


def test_what_was_lent_comes_back_in_equal_parts() -> None:
    """On the devices that were lent, and of nobody whose size is not known."""
    lent = Membership(model="g", leader="b", devices=(0, 1))
    it = node(1000, 1000, 1000, members=(lent,))

    def fits(mb: int, gone: str = "g", **sizes: int) -> bool:
        needed = need(mb, 2)
        return fit.devices_for(ModelConfig(id="m"), it, needed, without={gone}, sizes=sizes) is not None

    assert fits(3000, g=4000)
    assert not fits(3001, g=4000)
    assert not fits(1001, h=4000)
    assert not fits(1001, "h", g=4000)
    assert fit.devices_for(ModelConfig(id="m"), it, need(3000, 3), without={"g"}, sizes={"g": 4000}) is None


def test_who_leaves_without_a_known_size_frees_nothing() -> None:
    """Not even a MiB."""
    it = node(1000, replicas=(Replica(model="n", status="loaded", devices=(0,)),))

    assert fit.devices_for(ModelConfig(id="m"), it, need(1000), without={"n"}) == (0,)
    assert fit.devices_for(ModelConfig(id="m"), it, need(1001), without={"n"}, sizes={"o": 9}) is None
    lending = node(1000, members=(Membership(model="g", leader="b", devices=(0,)),))
    assert fit.devices_for(ModelConfig(id="m"), lending, need(1001), without={"g"}) is None


@pytest.mark.parametrize(
    ("member", "size"),
    [
        (Membership(model="g", leader="b", devices=(0, 1), device_mb=300), 600),
        (Membership(model="g", leader="b", devices=(0, 1), device_mb=0), 0),
        (Membership(model="g", leader="b", devices=(1,)), 2000),
    ],
)
def test_what_comes_back_of_what_is_lent(member: Membership, size: int) -> None:
    """As the leader tells it, or else all that those devices have in use."""
    assert fit.lent_size(member, node(1000, 8000)) == size


def test_who_leaves_frees_its_share_on_each_of_its_devices() -> None:
    """4000 MiB over two devices are 2000 on each."""
    spread = Replica(model="n", status="loaded", devices=(0, 1))
    it = node(1000, 1000, replicas=(spread,))

    def chosen(mb: int) -> tuple[int, ...] | None:
        return fit.devices_for(ModelConfig(id="m"), it, need(mb, 2), without={"n"}, sizes={"n": 4000})

    assert chosen(3000) == (0, 1)
    assert chosen(3001) is None


@pytest.mark.parametrize(
    ("model", "needed", "reason"),
    [
        pytest.param(ModelConfig(id="m", pinned_on=("a",)), need(9000), None, id="fits on its pin"),
        pytest.param(ModelConfig(id="m", pinned_on=("b", "c")), need(1), "b, c", id="pinned elsewhere"),
        pytest.param(ModelConfig(id="m", harness="candle"), need(1), "it offers jax", id="another harness"),
        pytest.param(ModelConfig(id="m", min_devices=2), need(1), "has 1 of the 2 devices", id="too few devices"),
        pytest.param(ModelConfig(id="m"), need(1, 2), "has 1 of the 2 devices", id="too few for its shards"),
        pytest.param(ModelConfig(id="m", min_device_vram_mb=20_000), need(1), "with 20000 MiB", id="devices too small"),
        pytest.param(ModelConfig(id="m", min_device_vram_mb=10_000), need(1), None, id="devices just large enough"),
        pytest.param(ModelConfig(id="m"), need(10_000), None, id="fits exactly when empty"),
        pytest.param(ModelConfig(id="m"), need(10_001), "its largest device has 10000", id="too big when empty"),
        pytest.param(ModelConfig(id="m"), need(10_001, proven=True), None, id="it has run here"),
        pytest.param(ModelConfig(id="m"), need(None), None, id="nobody knows its size"),
    ],
)
def test_why_never(model: ModelConfig, needed: fit.Need, reason: str | None) -> None:
    """One reason why a node could not hold a model even if it were empty."""
    found = fit.why_never(model, node(0), needed)

    assert found is None if reason is None else reason in str(found)


def test_the_largest_device_is_told() -> None:
    """Of several."""
    devices = tuple(Device(index=index, vram_total_mb=mb) for index, mb in enumerate((8000, 9000, 7000)))
    it = Node(name="a", endpoint="http://a", devices=devices)

    assert "its largest device has 9000" in str(fit.why_never(ModelConfig(id="m"), it, need(9001)))


def test_a_device_that_does_not_tell_its_size_is_tried() -> None:
    """Where nobody knows what the model needs, or where it has run already."""
    it = node(0, total=0)

    assert len(fit.roomy(ModelConfig(id="m"), it, need(None))) == 1
    assert len(fit.roomy(ModelConfig(id="m"), it, need(9, proven=True))) == 1
    assert not fit.roomy(ModelConfig(id="m"), it, need(1))


def test_a_node_without_harnesses_says_so() -> None:
    """The message is a sentence for the operator."""
    assert "it offers none" in str(fit.why_never(ModelConfig(id="m"), node(0, harnesses=()), need(1)))


@pytest.mark.parametrize(
    ("told", "estimate", "guess", "whole"),
    [
        pytest.param(fit.Knowledge(), None, None, None, id="nobody knows"),
        pytest.param(fit.Knowledge(), None, 8000, 8000, id="the operator's guess"),
        pytest.param(fit.Knowledge(), 7000, 8000, 7000, id="the node's estimate beats the guess"),
        pytest.param(
            fit.Knowledge(measured={("m", "b"): 6000, ("x", "b"): 1}),
            7000,
            8000,
            6000,
            id="measured elsewhere beats both",
        ),
        pytest.param(
            fit.Knowledge(measured={("m", "b"): 6000, ("m", "c"): 6400}), None, None, 6400, id="the most elsewhere"
        ),
        pytest.param(
            fit.Knowledge(measured={("m", "b"): 6000, ("m", "a"): 5000}), 7000, 8000, 5000, id="measured here"
        ),
        pytest.param(
            fit.Knowledge(measured={("m", "a"): 5000}, demanded={("m", "a"): 9000}),
            None,
            None,
            9000,
            id="it has refused",
        ),
    ],
)
def test_need(told: fit.Knowledge, estimate: int | None, guess: int | None, whole: int | None) -> None:
    """One rank of the sources of a model's size; spread over two devices it is half of it."""
    it = node(0, 0, replicas=(Replica(model="m", status="unloaded", vram_estimate_mb=estimate),))
    model = ModelConfig(id="m", vram_mb=guess, min_devices=2)
    proven = ("m", "a") in told.measured and not told.demanded

    assert fit.need(model, it, told) == need(None if whole is None else whole // 2, 2, proven=proven)


def test_half_a_mebibyte_is_rounded_up() -> None:
    """An odd size over two devices."""
    found = fit.need(ModelConfig(id="m", vram_mb=7, tensor_parallel=2), node(0))

    assert found.per_device_mb == 4


@pytest.mark.parametrize(
    ("replica", "measured", "guess", "size"),
    [
        (Replica(model="m", status="loaded", devices=(0,), vram_used_mb=5, vram_estimate_mb=3), {}, 4, 5),
        (Replica(model="m", status="loaded", devices=(0,), vram_estimate_mb=3), {("m", "a"): 6}, 4, 6),
        (Replica(model="m", status="loaded", devices=(0,), vram_estimate_mb=3), {}, 4, 3),
        (Replica(model="m", status="loaded", devices=(0,)), {}, 4, 4),
        (Replica(model="m", status="loaded", devices=(1,)), {}, None, 2000),
    ],
)
def test_what_comes_back_when_a_model_leaves(replica: Replica, measured: Any, guess: int | None, size: int) -> None:
    """The nearest truth; where nobody knows, whatever its devices have in use."""
    it = node(1000, 8000)

    assert fit.size(replica, it, fit.Knowledge(measured=measured), ModelConfig(id="m", vram_mb=guess)) == size


def test_free_memory_is_over_all_devices() -> None:
    """It ranks nodes."""
    assert fit.free_mb(node(1000, 8000)) == 9000
