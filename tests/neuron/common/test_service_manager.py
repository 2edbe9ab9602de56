"""What systemd hears of us, by a socket such as its own."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuron_jax.common.service_manager import ALIVE, READY, ServiceManager, service_manager

Hears = tuple[str, socket.socket]


@pytest.fixture(params=["path", "abstract"])
def hears(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hears]:
    """Its address as systemd spells it, and its end."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@cortex-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0"))
        end.settimeout(10)
        yield name, end


def test_a_word_is_one_message(hears: Hears) -> None:
    address, end = hears
    manager = service_manager({"NOTIFY_SOCKET": address})
    manager.tell(READY)

    assert end.recv(100) == b"READY=1"
    assert manager.every is None


def test_signs_of_life_come_for_as_long_as_the_loop_turns(hears: Hears) -> None:
    """And end with it."""
    address, end = hears

    async def run() -> None:
        task = asyncio.create_task(ServiceManager(address, 0.001).signs_of_life())
        for _ in range(3):
            assert await asyncio.to_thread(end.recv, 100) == ALIVE.encode()
        task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("said", "every"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_how_often_it_wants_to_hear_of_us(said: dict[str, str], every: float | None) -> None:
    """Twice as often as it waits; what is for another process is not for us."""
    assert service_manager({"NOTIFY_SOCKET": "/x", **said}) == ServiceManager("/x", every)


def test_who_was_started_by_nobody_tells_nobody() -> None:
    """Signs of life end at once."""
    manager = service_manager({"WATCHDOG_USEC": "30000000"})
    manager.tell(READY)

    assert manager == ServiceManager(None, None)
    asyncio.run(manager.signs_of_life())


def test_that_it_cannot_be_told_is_logged_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager(str(tmp_path / "gone")).tell(READY)

    assert "systemd could not be told READY=1" in caplog.text


def test_nobody_waits_for_who_does_not_listen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel keeps a few words for it; what is more is lost, and the program goes on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        manager = ServiceManager(str(tmp_path / "notify"))
        for _ in range(2000):
            manager.tell(ALIVE)

    assert "systemd could not be told WATCHDOG=1" in caplog.text
