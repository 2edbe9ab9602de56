"""Requests that are far too long: seconds until they are refused, and memory that the daemon needs for it.

    python bench/long_requests.py --gguf FILE [--neuron neuron] [--json OUT]

Method. One daemon with one model; each request is sent by itself, three times. All but one (a switch that the template does
not read) are refused. Seconds are the median, from the first byte sent to the last byte received. Memory is what the daemon
and the processes that render its templates (not the engine) hold at most during a request, over what they held before the
first: the sum of VmHWM, reset before each. Linux.
"""

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sides import Side, neuron, words

MB = 1_000_000
ROUNDS = 3
Body = dict[str, Any]


def main() -> None:
    """Start, ask, print, stop."""
    told = _arguments()
    rows = []
    with neuron(told.neuron, told.gguf) as side:
        pids = [*_daemon(side)]
        base = sum(_rows(pid)["VmRSS"] for pid in pids)
        print(f"daemon at rest: {base // 1024} MiB\n{'request':34s} {'status':>6s} {'seconds':>8s} {'MiB more':>9s}")
        for name, path, body in cases():
            encoded = json.dumps({"model": side.model, "max_tokens": 1, **body}).encode()
            rows.append(_measured(name, side, path, encoded, base))
            print("{name:34s} {status:6d} {seconds:8.2f} {more_mib:9.0f}".format(**rows[-1]), flush=True)
    if told.json:
        told.json.write_text(json.dumps(rows, indent=2) + "\n")


def cases() -> Iterator[tuple[str, str, Body]]:
    """Name, path and body of each request."""
    text = words(5_000_000, "long")
    chat, completions = "/v1/chat/completions", "/v1/completions"
    for size in (1, 4, 8, 31):
        yield f"chat, {size} MB of words", chat, _chat(text[: size * MB])
    yield "chat, 31 MB without a space", chat, _chat("x7" * (31 * MB // 2))
    yield "chat, 31 MB of names of tokens", chat, _chat("<|im_end|>" * (31 * MB // 10))
    yield "chat, 31 MB said by the assistant", chat, {"messages": [{"role": "assistant", "content": text[: 31 * MB]}]}
    yield "chat, 31 MB in 10,000 messages", chat, {"messages": [{"role": "user", "content": text[:3_000]}] * 10_000}
    yield "chat, 400,000 messages", chat, {"messages": [{"role": "user", "content": ""}] * 400_000}
    yield "chat, 31 MB of empty lists", chat, {**_chat("hi"), "x": [[]] * (31 * MB // 4)}
    yield "chat, 31 MB in a switch", chat, {**_chat("hi"), "chat_template_kwargs": {"x": text[: 31 * MB]}}
    yield "completion, 31 MB of words", completions, {"prompt": text[: 31 * MB]}
    yield "completion, 128 times 240 kB", completions, {"prompt": [text[:240_000]] * 128}
    yield "completion, 900,000 ids", completions, {"prompt": [42] * 900_000}
    yield "tokenize, 31 MB of words", "/tokenize", {"prompt": text[: 31 * MB]}


def _chat(content: str) -> Body:
    return {"messages": [{"role": "user", "content": content}]}


def _measured(name: str, side: Side, path: str, body: bytes, base: int) -> dict[str, Any]:
    seconds, more, status = [], [], 0
    for _ in range(ROUNDS):
        for pid in _daemon(side):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        began = time.perf_counter()
        status = _post(side, path, body)
        seconds.append(time.perf_counter() - began)
        more.append(sum(_rows(pid)["VmHWM"] for pid in _daemon(side)) - base)
    return {"name": name, "status": status, "seconds": statistics.median(seconds), "more_mib": max(more) / 1024}


def _post(side: Side, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection(urlsplit(side.url).netloc, timeout=300)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _daemon(side: Side) -> Iterator[int]:
    """The daemon that listens on the side's port, and what renders for it."""
    port = str(urlsplit(side.url).port).encode()
    found = {int(path.name): _read(path / "cmdline") for path in Path("/proc").iterdir() if path.name.isdigit()}
    daemon = next(pid for pid, line in found.items() if b"--port\0" + port in line)
    yield daemon
    yield from (pid for pid, line in found.items() if b"render_process" in line and _rows(pid)["PPid"] == daemon)


def _rows(pid: int) -> dict[str, int]:
    """/proc/PID/status, sizes in KiB."""
    lines = map(str.split, _read(Path(f"/proc/{pid}/status")).decode().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in lines if len(row) > 1 and row[1].isdigit()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--neuron", default="neuron")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
