"""What the gateway adds: latency of a request, and chunks per second that one core relays.

Method. Three processes on this machine: the do-nothing neuron (tests/fakes/neuron_double.py), a gateway in front of it
(`cortex serve` with one neuron), and this client on plain sockets with kept connections. Requests go to the neuron and
to the gateway in each dialect in turn, so that all see the same machine; what the gateway adds is the difference of the
medians, and of the 99th percentiles. The gateway's processor time per request says the same on a machine that is busy with
other things. Streams go through the gateway alone, one after another; chunks per second are counted by the client's clock
and by the gateway's own processor time (`/proc/PID/stat`): the second is what one core would relay if nothing else ran. The
first tenth of everything warms up and is not counted. With --key the gateway asks for a key that has every kind of limit.
No test runs this.

    python bench/gateway.py [--requests 2000] [--streams 20] [--chunks 2000] [--key] [--json]
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
HELLO = [{"role": "user", "content": "Hello"}]
DIALECTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", "max_tokens", {"messages": HELLO}),
    "messages": ("/v1/messages", "max_tokens", {"messages": HELLO}),
    "responses": ("/v1/responses", "max_output_tokens", {"input": HELLO, "store": False}),
}
"""Of each its path, what it calls the most tokens, and the rest of a body."""


def main() -> None:
    """Start the processes, measure, print, stop them."""
    told = _arguments()
    neuron_port, port, metrics_port = _free_port(), _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as folder, _running(_neuron(neuron_port)):
        _await_port(neuron_port)
        config = pathlib.Path(folder) / "cortex.toml"
        config.write_text(_config(port, metrics_port, neuron_port, required=told.key))
        key = _make_key(config) if told.key else None
        with _running([sys.executable, "-m", "cortex_gateway", "serve", "--config", str(config)]) as gateway:
            _await_port(port)
            time.sleep(1.0)  # the first look at the neuron
            figures = _measure(told, neuron_port, port, gateway.pid, key)
    print(json.dumps(figures) if told.json else _table(figures))


def _measure(told: argparse.Namespace, neuron_port: int, port: int, pid: int, key: str | None) -> dict[str, float]:
    cpu = _cpu_seconds(pid)
    taken = _latencies(neuron_port, port, told.requests, key)
    cpu = _cpu_seconds(pid) - cpu
    direct = taken.pop("direct")
    relayed = {name: _relay(port, name, told, pid, key) for name in DIALECTS}
    return {
        "direct_p50_ms": statistics.median(direct),
        **{f"{name}_added_p50_ms": statistics.median(one) - statistics.median(direct) for name, one in taken.items()},
        **{f"{name}_added_p99_ms": _tail(one) - _tail(direct) for name, one in taken.items()},
        "gateway_cpu_ms_per_request": cpu * 1000 / (told.requests * len(taken)),
        **{f"{name}_chunks_per_s": wall for name, (wall, _) in relayed.items()},
        **{f"{name}_chunks_per_cpu_s": cpu for name, (_, cpu) in relayed.items()},
    }


def _latencies(neuron_port: int, port: int, requests: int, key: str | None) -> dict[str, list[float]]:
    """Milliseconds of each request: "direct" to the neuron, and through the gateway by dialect."""
    asked = {name: _request(*_body(name, 1), key) for name in DIALECTS}
    taken: dict[str, list[float]] = {"direct": [], **{name: [] for name in DIALECTS}}
    with _connection(neuron_port) as direct, _connection(port) as relayed:
        for _ in range(requests):
            for name, times in taken.items():
                line = direct if name == "direct" else relayed
                begun = time.perf_counter()
                line.sendall(asked["chat" if name == "direct" else name])
                _whole_answer(line)
                times.append((time.perf_counter() - begun) * 1000)
    return {name: times[requests // 10 :] for name, times in taken.items()}


def _tail(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def _body(dialect: str, tokens: int) -> tuple[str, dict[str, Any]]:
    path, most, rest = DIALECTS[dialect]
    return path, {"model": "demo", most: tokens, **rest}


def _relay(port: int, dialect: str, told: argparse.Namespace, pid: int, key: str | None) -> tuple[float, float]:
    """Chunks per second: by the clock, by the gateway's processor time."""
    streams, chunks = told.streams, told.chunks
    path, body = _body(dialect, chunks)
    request = _request(path, {**body, "stream": True}, key)
    with _connection(port) as line:
        for _ in range(max(1, streams // 10)):
            _one_stream(line, request, chunks)
        clock, cpu = time.perf_counter(), _cpu_seconds(pid)
        for _ in range(streams):
            _one_stream(line, request, chunks)
        clock, cpu = time.perf_counter() - clock, _cpu_seconds(pid) - cpu
    return streams * chunks / clock, streams * chunks / cpu


def _one_stream(line: socket.socket, request: bytes, chunks: int) -> None:
    line.sendall(request)
    received = bytearray()
    while not received.endswith(b"0\r\n\r\n"):
        received += line.recv(1 << 18)
    found = received.count(b'" token"')
    if found != chunks:
        raise SystemExit(f"{found} chunks came of {chunks}: {bytes(received[:300])!r}")


def _whole_answer(line: socket.socket) -> None:
    received = line.recv(1 << 16)
    while b"\r\n\r\n" not in received:
        received += line.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(received.decode())
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
    while len(body) < length:
        body += line.recv(1 << 16)


def _request(path: str, body: dict[str, Any], key: str | None) -> bytes:
    encoded = json.dumps(body).encode()
    shown = f"authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(encoded)}\r\n"
    )
    return (head + shown).encode() + b"\r\n" + encoded


@contextmanager
def _connection(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield line


@contextmanager
def _running(command: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _neuron(port: int) -> list[str]:
    return [sys.executable, "-m", "tests.fakes.neuron_double", "--port", str(port)]


def _make_key(config: pathlib.Path) -> str:
    limits = ("--requests-per-minute", "--tokens-per-minute", "--max-concurrent")
    named = [word for limit in limits for word in (limit, "100000000")]
    command = [sys.executable, "-m", "cortex_gateway", "keys", "add", "bench", "--model", "demo", *named]
    made = subprocess.run([*command, "--config", str(config)], cwd=ROOT, check=True, capture_output=True, text=True)
    return made.stdout.strip()


def _config(port: int, metrics_port: int, neuron_port: int, *, required: bool) -> str:
    asked = "[auth]\nrequired = true\n" if required else ""
    return (
        f'[gateway]\nlisten = "127.0.0.1:{port}"\nmetrics_listen = "127.0.0.1:{metrics_port}"\n{asked}'
        f'[[neurons]]\nname = "double"\nendpoint = "http://127.0.0.1:{neuron_port}"\n'
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int) -> None:
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


def _cpu_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _table(figures: dict[str, float]) -> str:
    return "\n".join(f"{name:26}{value:12,.2f}" for name, value in figures.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What the gateway adds, in front of a neuron that does nothing.")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--key", action="store_true", help="ask for a key that has every kind of limit")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
