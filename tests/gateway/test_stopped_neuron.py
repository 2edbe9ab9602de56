"""A neuron's process that is stopped says nothing and closes nothing: who waits for it is freed, and it comes back."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cortex_gateway.dialects.sse import SseParser
from tests.fakes.gateway_rig import BODIES, CHAT, MESSAGES
from tests.fakes.live_gateway import LiveGateway, live_gateway
from tests.fakes.stack import free_ports
from tests.fakes.waiting import until_sync

PATHS = [CHAT, MESSAGES]
QUICK = {"look_timeout_secs": 0.6, "watch_secs": 0.05}


class Neuron:
    """A double in a process of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        self.process, self.url = process, url

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=1).is_success
        return False


@pytest.fixture(scope="module")
def neuron() -> Iterator[Neuron]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.fakes.neuron_double", "--port", str(port), "--pause", "0.1"]
    with subprocess.Popen(command) as process:
        it = Neuron(process, f"http://127.0.0.1:{port}")
        try:
            until_sync(it.answers, 60)
            yield it
        finally:
            it.go_on()
            process.kill()


@pytest.fixture
def gateway(neuron: Neuron) -> Iterator[LiveGateway]:
    with live_gateway({"one": neuron.url}, QUICK) as it:
        yield it
        neuron.go_on()


def healthy(it: LiveGateway) -> bool:
    (node,) = httpx.get(f"{it.url}/admin/fleet").json()["nodes"]
    return bool(node["healthy"])


def in_flight(it: LiveGateway) -> int:
    (node,) = httpx.get(f"{it.url}/admin/fleet").json()["nodes"]
    return sum(model["in_flight"] for model in node["models"])


def message(answer: Any) -> str:
    return str(answer["error"]["message"])


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_is_not_waited_for_for_ever(path: str, neuron: Neuron, gateway: LiveGateway) -> None:
    """502 in the dialect's envelope once the node has been silent; and when it is back it serves."""
    neuron.stop()
    answer = httpx.post(gateway.url + path, json=BODIES[path], timeout=30)

    assert answer.status_code == 502
    assert "one has stopped answering" in message(answer.json())
    assert not healthy(gateway)
    assert in_flight(gateway) == 0

    neuron.go_on()
    until_sync(lambda: healthy(gateway), 20)
    assert httpx.post(gateway.url + path, json={**BODIES[path], "max_tokens": 1}, timeout=30).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_ends_with_an_error_event(path: str, neuron: Neuron, gateway: LiveGateway) -> None:
    """In its midst, after what had come."""
    body = {**BODIES[path], "stream": True, "max_tokens": 200}
    raw = b""
    with httpx.stream("POST", gateway.url + path, json=body, timeout=30) as answer:
        for chunk in answer.iter_raw():
            raw += chunk
            if b" token" in raw:
                neuron.stop()
    events = SseParser().feed(raw)

    assert answer.status_code == 200
    assert b"has stopped answering" in events[-1].data
    assert b"[DONE]" not in raw
    assert b"message_stop" not in raw
    assert in_flight(gateway) == 0


def test_a_pause_that_is_shorter_costs_nothing(neuron: Neuron, gateway: LiveGateway) -> None:
    """A look or two are missed; the answer comes."""
    wake = threading.Timer(0.4, neuron.go_on)
    neuron.stop()
    wake.start()
    answer = httpx.post(gateway.url + CHAT, json=BODIES[CHAT], timeout=30)
    wake.join()

    assert answer.status_code == 200
