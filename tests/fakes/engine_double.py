"""A real process that stands in for the JAX engine: it speaks the frames and invents tokens; no JAX, no weights.

It goes with `tests.fakes.tiny_model`, where a token id below 256 is a byte, so it can read the prompt. It echoes the
prompt's bytes, one token per request and step, and then ends with the first stop id. Words in the prompt change that:

    [[say TEXT]]    answers TEXT instead          [[count N]]   answers N letters: abc…zabc…
    [[die N]]       the process ends after N tokens of that request
    [[die once N]]  the same, but only in the first process that serves this folder
    [[stall N]]     gives no more tokens after N, until cancelled
    [[fail N]]      the request ends with finish "error" after N tokens
    [[cached N]]    its first output says that N tokens of the prompt were cached

Of texts to embed it makes one vector a step, [number of tokens, first token].

`double.json` in the model folder changes the process: see `Script`. Each start adds to `starts` in that folder, and a
line to `specs`.
"""

import argparse
import fcntl
import json
import os
import re
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import define, frozen

from neuron_jax.workers import frames
from neuron_jax.workers.frames import Alternative, EngineLoad, EngineSpec, MemoryRow, Output, Submit
from neuron_jax.workers.heart import Heart

COMMAND = (sys.executable, "-m", "tests.fakes.engine_double")
ROOT = Path(__file__).resolve().parents[2]
DIRECTIVE = re.compile(r"\[\[(say|count|cached|die once|die|stall|fail) (.*?)\]\]", re.DOTALL)


def environment() -> dict[str, str]:
    """The environment a daemon must hand on for `COMMAND` to be found."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@frozen
class Script:
    """What `double.json` may say. `fail`: [kind, message] instead of ready; `die_loading`: exit code while loading."""

    pace: float = 0.001  # seconds between steps
    max_context: int = 4096
    max_slots: int = 8
    fail: Sequence[str] = ()
    fail_starts: Sequence[int] = ()  # of the folder: only these, from 1 on; () = every start
    last_words: Sequence[str] = ()  # [kind, message] said when a request makes it die
    die_loading: int | None = None
    die_loading_after: int = 0  # starts that work before `die_loading` begins
    die_ready: int | None = None  # exit code right after ready
    load_seconds: float = 0.0
    stubborn: bool = False  # ignores Shutdown
    dropped: Sequence[str] = ()  # programs that it could not compile
    ballast_mb: int = 0  # of memory that it takes
    embedding_dies: int = 0  # starts of the folder that end when they are to embed the second text
    embedding_stalls: bool = False  # gives nothing after the first
    dies_swapping: bool = False  # when weights with this script are to be put in place


def read_script(folder: Path) -> Script:
    path = folder / "double.json"
    return Script(**json.loads(path.read_text())) if path.exists() else Script()


@define
class Running:
    """One submission and how far it is."""

    submit: Submit
    reply: list[int]
    verb: str
    at: int
    cached: int = 0
    sent: int = 0


def reply_of(submit: Submit) -> Running:
    text = bytes(token for token in submit.prompt if token < 256).decode("utf-8", "replace")
    verb, argument, cached = "", "0", 0
    reply = text
    for found in DIRECTIVE.finditer(text):
        if found[1] == "say":
            reply = found[2]
        elif found[1] == "count":
            reply = "".join(chr(97 + index % 26) for index in range(int(found[2])))
        elif found[1] == "cached":
            cached = int(found[2])
        else:
            verb, argument = found[1], found[2]
    return Running(submit, list(reply.encode()), verb, int(argument), cached)


def next_output(run: Running) -> Output | None:
    """The next token of one request, or None when it stalls."""
    if run.verb and run.sent >= run.at:
        return misbehave(run)
    submit = run.submit
    ends = bool(submit.stop_ids) and not submit.ignore_eos and run.sent >= max(len(run.reply), submit.min_tokens)
    cycle = run.reply or [ord(".")]
    token = submit.stop_ids[0] if ends else cycle[run.sent % len(cycle)]
    run.sent += 1
    stopped = token in submit.stop_ids and not submit.ignore_eos and run.sent > submit.min_tokens
    finish: Literal["stop", "length"] | None = "stop" if stopped else None
    if not stopped and run.sent >= submit.max_tokens:
        finish = "length"
    cached = run.cached if run.sent == 1 else 0
    return Output(submit.request, [token], finish=finish, cached_tokens=cached, **logprobs(submit, token))


def misbehave(run: Running) -> Output | None:
    if run.verb == "die":
        os._exit(41)
    if run.verb == "fail":
        return Output(run.submit.request, [], finish="error", error="the double was told to fail")
    return None


def logprobs(submit: Submit, token: int) -> dict[str, Any]:
    count = submit.sampling.logprobs
    if count is None:
        return {}
    ranked = [Alternative((token + rank) % 256, -0.5 - rank) for rank in range(count)]
    return {"logprobs": [-0.5], "alternatives": [ranked]}


class Double:
    """The process: a socket, the requests that run, and a script."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.lock = threading.Lock()
        self.reader = frames.CommandReader()
        self.running: dict[int, Running] = {}
        self.texts: dict[int, tuple[frames.Embed, int]] = {}  # and how many of them have their vectors
        self.steps = 0
        self.script = Script()
        self.starts = 0  # of this folder, with this one
        self.ballast = b""

    def serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            while True:
                busy = bool(self.running or self.texts)
                if selector.select(self.script.pace if busy else None):
                    self.receive()
                if self.running:
                    self.step()
                if self.texts:
                    self.embed()

    def receive(self) -> None:
        chunk = self.sock.recv(1 << 20)
        if not chunk:
            sys.exit(0)
        for command in self.reader.feed(chunk):
            self.obey(command)

    def obey(self, command: frames.Command) -> None:
        match command:
            case frames.LoadEngine(spec):
                self.load(spec)
            case frames.Submit():
                self.running[command.request] = run = reply_of(command)
                if run.verb == "die once":
                    run.verb = "die" if self.starts == 1 else ""
                if run.verb == "stall":
                    self.send(frames.PromptsRead([(command.request, len(command.prompt) - 3, 2)]))
            case frames.Embed(request):
                self.texts[request] = (command, 0)
            case frames.Cancel(request):
                self.running.pop(request, None)
                self.texts.pop(request, None)
                self.send(frames.LoadReport(self.busy()))
            case frames.ReadWeights() | frames.SwapWeights():
                self.change(command)
            case frames.Shutdown() if not self.script.stubborn:
                sys.exit(0)

    def change(self, command: frames.ReadWeights | frames.SwapWeights) -> None:
        if isinstance(command, frames.ReadWeights):
            script = read_script(Path(command.path))
            self.script = self.script if script.fail else script
            self.send(frames.WeightsRead(*script.fail))
        elif self.script.dies_swapping:
            os._exit(43)
        else:
            self.send(frames.WeightsSwapped())

    def load(self, spec: EngineSpec) -> None:
        path = Path(spec.path) / "double.json"
        self.script = read_script(path.parent)
        for done in range(3):
            self.send(frames.Progress("weights", done * 50, 100, "bytes"))
            time.sleep(self.script.load_seconds / 3)
        self.count_start(path)
        self.ballast = b"x" * (self.script.ballast_mb << 20)
        told = {"memory_mb": spec.memory_mb, "kv_mb": spec.kv_mb, "devices": spec.devices}
        told["fraction"] = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
        with path.with_name("specs").open("a") as file:
            print(json.dumps(told), file=file)
        if self.script.fail and (not self.script.fail_starts or self.starts in self.script.fail_starts):
            kind, message = self.script.fail
            self.send(frames.EngineFailed(kind, message, (MemoryRow("weights", 1000),)))
            sys.exit(1)
        self.send(self.ready(spec))
        if self.script.die_ready is not None:
            print("the double was told to die when ready", flush=True)
            os._exit(self.script.die_ready)

    def count_start(self, path: Path) -> None:
        with path.with_name("starts").open("a+") as starts:  # replicas start at once
            fcntl.flock(starts, fcntl.LOCK_EX)
            starts.seek(0)
            count = int(starts.read() or "0") + 1
            starts.truncate(0)
            starts.write(str(count))
        self.starts = count
        if self.script.die_loading is not None and count > self.script.die_loading_after:
            print("the double was told to die while loading", flush=True)
            os._exit(self.script.die_loading)

    def ready(self, spec: EngineSpec) -> frames.Ready:
        return frames.Ready(
            max_context=min(spec.max_context or self.script.max_context, self.script.max_context),
            max_slots=self.script.max_slots,
            page_size=16,
            pages=1024,
            quant="none",
            quant_reason="a double has no weights",
            kv_dtype="float32",
            kv_reason="a double has no cache",
            deterministic=False,
            deterministic_reason="a double invents its tokens",
            attention="none",
            attention_reason="a double attends to nothing",
            compute_dtype="float32",
            devices=tuple(f"double:{index}" for index in spec.devices),
            plan=(MemoryRow("weights", 1 << 20), MemoryRow("KV pages", 2 << 20), MemoryRow("total", 3 << 20)),
            load_seconds=0.0,
            width=2,
        )

    def step(self) -> None:
        self.steps += 1
        if self.script.last_words and any(run.verb == "die" and run.sent >= run.at for run in self.running.values()):
            kind, message = self.script.last_words
            self.send(frames.EngineFailed(kind, message))
        outputs = [output for run in tuple(self.running.values()) if (output := next_output(run))]
        for output in outputs:
            if output.finish:
                del self.running[output.request]
        self.send(frames.StepOutputs(outputs, self.busy()))

    def embed(self) -> None:
        for request, (asked, done) in tuple(self.texts.items()):
            if done and self.starts <= self.script.embedding_dies:
                os._exit(41)
            if done and self.script.embedding_stalls:
                continue
            ids = asked.texts[done]
            self.texts[request] = (asked, done + 1)
            if done + 1 == len(asked.texts):
                del self.texts[request]
            values = struct.pack("<2f", len(ids), ids[0])
            self.send(frames.Vectors(request, [done], values, self.busy()))

    def busy(self) -> EngineLoad:
        free = 1024 - len(self.running)
        dropped = tuple(self.script.dropped)
        return EngineLoad(
            len(self.running) + len(self.texts),
            free_pages=free,
            pages=1024,
            decode_rate=100.0,
            steps=self.steps,
            dropped=dropped,
        )

    def send(self, event: frames.Event) -> None:
        with self.lock:
            self.sock.sendall(frames.encode(event))


def main() -> None:
    print("this process stands in for the JAX engine: it invents its tokens", flush=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    with socket.socket(fileno=parser.parse_args().fd) as sock:
        double = Double(sock)
        Heart(double.send)
        double.serve()


if __name__ == "__main__":
    main()
