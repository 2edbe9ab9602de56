"""The whole product on this machine, started the way a user starts it; for tests that talk to it over HTTP."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
from attrs import define, field

START_SECS = 240


@define
class Stack:
    """A running `cortex up`. `output` is what it printed so far."""

    process: subprocess.Popen[str]
    url: str
    metrics_url: str
    neuron_url: str
    output: list[str] = field(factory=list)

    def engine_pid(self) -> int:
        """The process that computes, as the neuron names it."""
        return next(m["pid"] for m in self.models().values() if m.get("pid"))

    def models(self) -> dict[str, dict[str, Any]]:
        return {model["id"]: model for model in httpx.get(f"{self.neuron_url}/models").json()}

    def chat(self, messages: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
        """One answer, not streamed, greedy unless said otherwise; the response's JSON."""
        body = {"model": "demo", "messages": messages, "temperature": 0} | changes
        response = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


@contextmanager
def running(*flags: str, **environ: str) -> Iterator[Stack]:
    """`cortex up` on free ports until the block ends; ends it as Ctrl-C does and checks that nothing is left."""
    api, metrics, neuron = free_ports(3)
    command = [sys.executable, "-m", "cortex_gateway", "up", *flags]
    command += ["--port", str(api), "--metrics-port", str(metrics), "--neuron-port", str(neuron)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environ
    )
    local = "http://127.0.0.1"
    stack = Stack(process, f"{local}:{api}", f"{local}:{metrics}", f"{local}:{neuron}")
    ready = threading.Event()
    reader = threading.Thread(target=_read, args=(stack, ready))
    reader.start()
    try:
        assert ready.wait(START_SECS), "".join(stack.output)
        assert process.poll() is None, "".join(stack.output)
        yield stack
    finally:
        children = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        reader.join(10)
    assert code == 0, f"exit code {code}: {''.join(stack.output)}"
    assert not [pid for pid in children if pathlib.Path(f"/proc/{pid}").exists()], "processes are left"


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _read(stack: Stack, ready: threading.Event) -> None:
    assert stack.process.stdout is not None
    with stack.process.stdout as lines:
        for line in lines:
            stack.output.append(line)
            if line.startswith("ready "):
                ready.set()
    ready.set()
