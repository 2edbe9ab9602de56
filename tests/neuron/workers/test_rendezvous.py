"""Ranks meet, are told to run, and notice each other's end; over real sockets, in threads instead of processes."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import pytest

from neuron_jax.common.addresses import parse_address
from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import GroupMember
from neuron_jax.workers.rendezvous import Leader, Member


def group(rank: int, at: str = "127.0.0.1:0", secret: str = "s", deadline: float = 10.0) -> GroupMember:
    return GroupMember(rank=rank, world=3, coordinator=at, secret=secret, deadline=deadline)


def in_thread(work: Callable[[], Any]) -> "list[Any]":
    """Starts `work`; its result, or what it raised, once the thread in [1] has ended."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except LoadError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return [found, thread]


Met = tuple[Leader, list[Member]]


@pytest.fixture
def met() -> Iterator[Met]:
    """A leader and two members who have gathered."""
    with ExitStack() as ends:
        leader = Leader.listen(group(0))
        ends.callback(leader.close)
        gathering = in_thread(leader.gather)
        members = [Member.attend(group(rank, leader.address)) for rank in (1, 2)]
        for member in members:
            ends.callback(member.close)
        gathering[1].join(10)
        yield leader, members


def test_all_meet_at_one_address(met: Met) -> None:
    leader, members = met
    address = leader.meet()

    assert [member.meet() for member in members] == [address, address]
    assert parse_address(address)[0] == "127.0.0.1"


def test_programs_are_usable_when_all_have_compiled_them(met: Met) -> None:
    leader, members = met
    leader.watch(lambda rank: None)
    for member in members:
        member.watch(lambda rank: None)
    members[0].tell_able([0, 1, 2])
    assert leader.able() == set()
    members[1].tell_able([1])
    wait_for(lambda: leader.able() == {1})
    words = np.arange(6, dtype=np.int32).reshape(2, 3)
    leader.run(1, words)

    for member in members:
        told = member.next(5.0)
        assert told is not None
        assert told.program == 1
        assert np.array_equal(told.array(), words)
        assert member.next(0.01) is None


def test_a_program_that_one_cannot_compile_is_known_to_the_leader(met: Met) -> None:
    leader, members = met
    leader.watch(lambda rank: None)
    assert leader.dropped() == set()
    members[0].tell_able([0, 1])
    members[1].tell_able([0], [1])
    members[1].tell_able([], [3])
    wait_for(lambda: (leader.able(), leader.dropped()) == ({0}, {1, 3}))  # the members tell it over lines of their own


def test_an_end_is_noticed_by_all(met: Met) -> None:
    leader, members = met
    seen: list[tuple[str, int]] = []
    leader.watch(lambda rank: seen.append(("leader", rank)))
    members[0].watch(lambda rank: seen.append(("first", rank)))
    members[1].close()
    wait_for(lambda: ("leader", 2) in seen)
    leader.close()
    wait_for(lambda: ("first", 0) in seen)


def test_who_would_serve_something_else_is_named(met: Met) -> None:
    leader, members = met
    members[0].agree("one")
    members[1].agree("another")

    with pytest.raises(LoadError, match="rank 2 would serve something else: another, not one") as refused:
        leader.agree("one")

    assert refused.value.kind == "rank_mismatch"


def test_who_leaves_before_agreeing_is_named(met: Met) -> None:
    leader, members = met
    members[0].close()

    with pytest.raises(LoadError, match="rank 1 left") as refused:
        leader.agree("one")

    assert refused.value.kind == "rank_exited"


@pytest.mark.parametrize(
    "words", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xff\xff\xff", b""], ids=["http", "length", "silence"]
)
def test_strangers_are_sent_away_and_keep_nobody_out(words: bytes) -> None:
    with closing(Leader.listen(group(0))) as leader, ExitStack() as ends:
        gathering = in_thread(leader.gather)
        stranger = ends.enter_context(socket.create_connection(parse_address(leader.address)))
        stranger.sendall(words)
        stranger.shutdown(socket.SHUT_WR)
        for rank in (1, 2):
            ends.enter_context(closing(Member.attend(group(rank, leader.address))))
        gathering[1].join(10)

        assert gathering[0] == [None]
        assert stranger.recv(1) == b""


def test_who_does_not_know_the_secret_is_not_told_where_to_meet() -> None:
    with closing(Leader.listen(group(0, deadline=2.0))) as leader:
        gathering = in_thread(leader.gather)
        with closing(Member.attend(group(1, leader.address, secret="guess", deadline=2.0))) as wrong:
            with pytest.raises(LoadError, match="sent this rank away"):
                wrong.meet()
            gathering[1].join(10)
    (refused,) = gathering[0]
    assert refused.kind == "rendezvous_timeout"
    assert "rank 1 and rank 2 of 3 did not come" in str(refused)


def test_nobody_there_is_told_after_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"

    with pytest.raises(LoadError, match=r"rank 1 of 3 did not meet the others at 127\.0\.0\.1") as refused:
        Member.attend(group(1, address, deadline=0.5))

    assert refused.value.kind == "rendezvous_timeout"


def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(LoadError, match="Address already in use") as refused:
            Leader.listen(group(0, address))

    assert refused.value.kind == "port_taken"


def wait_for(holds: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(6000):
        if holds():
            return
        event.wait(0.01)
    raise AssertionError("did not become true within 60 s")
