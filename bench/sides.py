"""Two OpenAI-compatible servers as a benchmark sees them: start one, ask it, time what streams back. Standard library only.

Knows no cases and no tables; `against_llama_cpp.py` and `against_transformers.py` do.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WORDS = [
    "anchor",
    "basket",
    "candle",
    "desert",
    "ember",
    "forest",
    "garden",
    "hollow",
    "island",
    "jacket",
    "kitchen",
    "lantern",
    "mirror",
    "needle",
]
START_SECONDS = 300
SETTLE_SECONDS = 600

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Side:
    """One server and the model it is asked for."""

    name: str
    url: str
    model: str


@dataclass(frozen=True)
class Answer:
    """One streamed answer: times in seconds of time.perf_counter(), tokens as the server counts them."""

    sent: float
    first: float
    last: float
    prompt_tokens: int
    tokens: int
    text: str

    @property
    def wait(self) -> float:
        """Seconds to the first token."""
        return self.first - self.sent

    @property
    def rate(self) -> float:
        """Tokens per second after the first."""
        return (self.tokens - 1) / max(self.last - self.first, 1e-9)


def words(count: int, seed: str) -> str:
    """`count` words, another text for every seed from its first word on."""
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(count))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def ask(side: Side, messages: Messages, max_tokens: int) -> Answer:
    """One greedy answer of exactly `max_tokens`, where the server knows `ignore_eos`. Raises SystemExit on a refusal."""
    body = {
        "model": side.model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent, first, last, pieces = time.perf_counter(), 0.0, 0.0, []
    usage: Mapping[str, int] = {}
    async for event in _events(side, body):
        usage = event.get("usage") or usage
        text = "".join(_text(choice.get("delta") or {}) for choice in event.get("choices") or ())
        if text:
            last = time.perf_counter()
            first = first or last
            pieces.append(text)
    if not first:
        raise SystemExit(f"{side.name}: an answer without text")
    tokens = usage.get("completion_tokens") or len(pieces)
    return Answer(sent, first, last, usage.get("prompt_tokens") or 0, tokens, "".join(pieces))


def _text(delta: Mapping[str, Any]) -> str:
    return (delta.get("reasoning_content") or "") + (delta.get("content") or "")


async def _events(side: Side, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event."""
    url = urlsplit(side.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port or 80)
    try:
        encoded = json.dumps(body).encode()
        head = (
            f"POST {url.path.rstrip('/')}/v1/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(encoded)}\r\n\r\n"
        )
        writer.write(head.encode() + encoded)
        status = (await reader.readuntil(b"\r\n\r\n")).decode()
        if " 200 " not in status.splitlines()[0]:
            raise SystemExit(f"{side.name}: {status.splitlines()[0]}: {(await reader.read(2000)).decode()}")
        async for line in _lines(reader):
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                yield json.loads(line[5:])
    finally:
        writer.close()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a chunked body, wherever its chunks are cut."""
    rest = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line


@contextmanager
def neuron(command: str, gguf: Path) -> Iterator[Side]:
    """Our own server on one model, with every program compiled."""
    port = free_port()
    env = {"NEURON_DEFAULT_MODELS__0__MODEL_ID": "bench", "NEURON_DEFAULT_MODELS__0__SOURCE": str(gguf)}
    with _process([command, "serve", "--port", str(port)], env) as process:
        url = f"http://127.0.0.1:{port}"
        _await(process, f"{url}/health", lambda text: json.loads(text)["activation"]["completed"], START_SECONDS)
        _await(process, f"{url}/metrics", _all_compiled, SETTLE_SECONDS)
        yield Side("neuron", url, "bench")


@contextmanager
def llama_server(command: str, gguf: Path, *, streams: int, context: int) -> Iterator[Side]:
    """llama.cpp's server with a slot for each stream and as many threads as there are cores."""
    port, cores = free_port(), len(os.sched_getaffinity(0))
    flags = ["-m", str(gguf), "--port", str(port), "-np", str(streams), "-c", str(streams * context)]
    with _process([command, *flags, "-t", str(cores), "-tb", str(cores)], {}) as process:
        url = f"http://127.0.0.1:{port}"
        _await(process, f"{url}/health", lambda text: json.loads(text)["status"] == "ok", START_SECONDS)
        yield Side("llama.cpp", url, "bench")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _all_compiled(metrics: str) -> bool:
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if "{" in line}
    return values["neuron_programs_compiled"] == values["neuron_programs"]


@contextmanager
def _process(command: Sequence[str], env: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **env})
        try:
            yield process
        except ServerGoneError as gone:
            log.seek(0)
            raise SystemExit(f"{command[0]}: {gone}\n{log.read().decode(errors='replace')[-2000:]}") from gone
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class ServerGoneError(Exception):
    """A server ended, or did not answer in time."""


def _await(process: "subprocess.Popen[bytes]", url: str, good: Any, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ServerGoneError(f"ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if good(answer.read().decode()):
                    return
        except (urllib.error.URLError, OSError, KeyError):
            pass
        time.sleep(0.25)
    raise ServerGoneError(f"{url} was not ready after {seconds:.0f} s")
