"""Who may use how much of a device: the arithmetic of grants, as data."""

import attrs
import pytest

from neuron_jax.daemon.shares import (
    DeviceMemory,
    MemoryGrant,
    MemoryRequest,
    Picture,
    Shortage,
    foreign,
    grant,
    left,
    measured,
    shortage,
    waits,
)
from neuron_jax.errors import LoadError

GPU = Picture({0: DeviceMemory(10_000, 10_000), 1: DeviceMemory(10_000, 10_000)}, {}, floor=200)
HOST = Picture({0: DeviceMemory(8_000, 8_000), 1: DeviceMemory(8_000, 8_000)}, {}, floor=100, shared=True)
A = MemoryGrant("a", "a", (0,), 4_000, settled=True, pids=(7,), planned=3_000)
LOADING = MemoryGrant("b", "b", (0,), 5_800, settled=False)


def full(picture: Picture, free: int, **used: int) -> Picture:
    """`picture` with so much free on every device, and what process 7 uses on device 0."""
    memories = {index: DeviceMemory(memory.total, free) for index, memory in picture.memories.items()}
    return attrs.evolve(picture, memories=memories, used={(0, 7): used["a"]} if used else {})


@pytest.mark.parametrize(
    ("picture", "grants", "other", "rest"),
    [
        (GPU, [], 0, 9_800),
        (GPU, [A], 0, 5_800),  # granted, and not used yet
        (full(GPU, 7_000), [A], 0, 5_800),  # nobody tells: what is used is taken for what it planned
        (full(GPU, 6_000, a=4_000), [A], 0, 5_800),
        (full(GPU, 6_000, a=1_000), [A], 3_000, 2_800),  # the rest is somebody else's
        (full(GPU, 6_000), [A], 1_000, 4_800),
        (full(GPU, 1_000), [A], 6_000, -200),
        (HOST, [attrs.evolve(A, devices=(0, 1), mb=1_000)], 0, 5_900),  # twice out of the same memory
        (HOST, [attrs.evolve(A, devices=(1,))], 0, 3_900),
    ],
)
def test_what_is_left_of_a_device(picture: Picture, grants: list[MemoryGrant], other: int, rest: int) -> None:
    """Neither granted, nor used by others, nor kept free."""
    assert (foreign(0, picture, grants), left(0, picture, grants)) == (other, rest)


@pytest.mark.parametrize(
    ("asked", "picture", "grants", "expected"),
    [
        (MemoryRequest("b", "b", (0,), 5_000), GPU, [A], MemoryGrant("b", "b", (0,), 5_000, settled=True)),
        (MemoryRequest("b", "b", (0,)), GPU, [A], MemoryGrant("b", "b", (0,), 5_800, settled=False)),
        (
            MemoryRequest("b", "b", (0, 1)),
            GPU,
            [A],
            MemoryGrant("b", "b", (0, 1), 5_800, settled=False),
        ),  # the fuller one decides
        (MemoryRequest("b", "b", (0, 1)), HOST, [], MemoryGrant("b", "b", (0, 1), 3_950, settled=False)),
        (
            MemoryRequest("a", "a", (0,)),
            GPU,
            [A],
            MemoryGrant("a", "a", (0,), 9_800, settled=False),
        ),  # what it had is its own
        (MemoryRequest("m#0", "m", (0,), sharers=2), HOST, [], MemoryGrant("m#0", "m", (0,), 3_950, settled=False)),
        (
            MemoryRequest("m#1", "m", (0,), sharers=2),
            HOST,
            [MemoryGrant("m#0", "m", (0,), 3_950, settled=False)],
            MemoryGrant("m#1", "m", (0,), 3_950, settled=False),
        ),
        (
            MemoryRequest("b", "b", (0,)),
            attrs.evolve(GPU, usable=0.5),
            [],
            MemoryGrant("b", "b", (0,), 4_900, settled=False),
        ),
    ],
)
def test_what_an_engine_is_granted(
    asked: MemoryRequest, picture: Picture, grants: list[MemoryGrant], expected: MemoryGrant
) -> None:
    """What it asked for, or all there is, shared with the engines that come with it."""
    assert grant(asked, picture, grants) == expected


@pytest.mark.parametrize(
    ("asked", "picture", "words"),
    [
        (
            MemoryRequest("b", "b", (0,), 6_000),
            GPU,
            "6000 MiB of device 0, which has 10000 MiB: a 4000 MiB, kept free 200 MiB",
        ),
        (MemoryRequest("b", "b", (0,), 6_000), GPU, "memory_mb = 5800 fits"),
        (MemoryRequest("b", "b", (0,), 900), full(GPU, 1_000, a=4_000), "other programs 5000 MiB"),
        (MemoryRequest("b", "b", (0,), 600), full(GPU, 200, a=4_000), "It fits when a is unloaded"),
        (MemoryRequest("b", "b", (1,), 600), full(GPU, 200, a=4_000), "600 MiB more have to be free"),
        (MemoryRequest("b", "b", (0,)), full(GPU, 200, a=4_000), "b asks for a share of device 0"),
        (MemoryRequest("b", "b", (0, 1), 3_000), HOST, "6000 MiB of the host's memory, which has 8000 MiB: a 4000 MiB"),
    ],
)
def test_a_device_that_is_full_says_who_has_it(asked: MemoryRequest, picture: Picture, words: str) -> None:
    """A table of who has what, and the smallest change that helps."""
    with pytest.raises(LoadError) as raised:
        grant(asked, picture, [A])

    assert raised.value.kind == "does_not_fit"
    assert words in raised.value.message
    assert raised.value.extras["plan"]


def test_others_wait_for_what_a_load_leaves() -> None:
    """Those on the same memory, but neither its own siblings nor an engine that starts again in what it has."""
    assert waits(MemoryRequest("c", "c", (0,)), GPU, [A, LOADING])
    assert waits(MemoryRequest("c", "c", (1,)), HOST, [LOADING])
    assert not waits(MemoryRequest("c", "c", (1,)), GPU, [A, LOADING])
    assert not waits(MemoryRequest("a", "a", (0,)), GPU, [A, LOADING])
    assert not waits(MemoryRequest("b#1", "b", (0,)), GPU, [LOADING])


@pytest.mark.parametrize(
    ("picture", "before", "expected"),
    [
        (full(GPU, 200), None, None),  # its use is not known: the floor alone
        (full(GPU, 199), None, Shortage(0, 199, 200)),
        (full(GPU, 1_200, a=2_000), None, None),
        (full(GPU, 1_199, a=2_000), None, Shortage(0, 1_199, 1_200)),
        (full(GPU, 200, a=5_000), None, None),
        (full(GPU, 249), Shortage(0, 0, 0), Shortage(0, 249, 200)),  # it does not flap
        (full(GPU, 250), Shortage(0, 0, 0), None),
        (attrs.evolve(full(GPU, 0), floor=0), None, None),
    ],
)
def test_work_that_could_not_end_is_seen(picture: Picture, before: Shortage | None, expected: Shortage | None) -> None:
    """Free memory against the floor and what is planned and not used yet."""
    assert shortage(A, picture, before) == expected


def test_what_an_engine_really_uses_is_what_the_driver_says() -> None:
    """None where it does not say, or not of every device."""
    assert measured(A, full(GPU, 1, a=123)) == 123
    assert measured(A, GPU) is None
    assert measured(attrs.evolve(A, devices=(0, 1)), full(GPU, 1, a=123)) is None
    assert measured(attrs.evolve(A, pids=()), full(GPU, 1, a=123)) is None
