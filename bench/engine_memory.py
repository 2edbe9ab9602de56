"""Resident memory of one engine process on the demo model, phase by phase, and what it takes besides weights and KV pages.

    python bench/engine_memory.py [--compile-cache FOLDER]

The process is the daemon's own, driven over its socket. Phases: started, before a model is named; ready; all programs
compiled and tracing forgotten; after mixed traffic. Linux, because it reads /proc.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from attrs import define, field

from neuron_jax.config import cache_root
from neuron_jax.hardware.cpu import parse_status
from neuron_jax.weights.builtin import BUILT_IN, fetch_built_in
from neuron_jax.workers.frames import (
    EngineFailed,
    EngineLoad,
    EngineSpec,
    Event,
    EventReader,
    LoadEngine,
    LoadReport,
    Ready,
    Sampling,
    Shutdown,
    StepOutputs,
    Submit,
    encode,
)
from neuron_jax.workers.process import engine_environment

MIB = 2**20
DEMO = BUILT_IN["smollm2-135m-instruct"]
KINDS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(temperature=1.0, top_k=40, min_p=0.05, logprobs=5),
    Sampling(temperature=0.7, top_p=0.95, presence_penalty=0.5, frequency_penalty=0.2, repetition_penalty=1.1),
    Sampling(temperature=1.0, logit_bias={7: -5.0, 11: 2.0}),
)


@define
class Process:
    """An engine process and this end of its socket."""

    spec: EngineSpec
    link: socket.socket = field(init=False)
    child: "subprocess.Popen[bytes]" = field(init=False)
    load: EngineLoad = field(factory=EngineLoad, init=False)
    _reader: EventReader = field(factory=EventReader, init=False)
    _heard: deque[Event] = field(factory=deque, init=False)

    def __attrs_post_init__(self) -> None:
        self.link, theirs = socket.socketpair()
        command = [sys.executable, "-m", "neuron_jax.workers.engine_process", "--fd", str(theirs.fileno())]
        env = engine_environment(self.spec, os.environ)
        self.child = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env)
        theirs.close()

    def events(self) -> Iterator[Event]:
        """What it says, for as long as it lives."""
        while True:
            while self._heard:
                yield self._heard.popleft()
            chunk = self.link.recv(1 << 20)
            if not chunk:
                raise SystemExit("the engine process ended")
            self._heard.extend(self._reader.feed(chunk))

    def resident(self) -> int:
        """Bytes."""
        return parse_status(Path(f"/proc/{self.child.pid}/status").read_text()).now

    def ready(self) -> Ready:
        self.link.sendall(encode(LoadEngine(self.spec)))
        for event in self.events():
            match event:
                case Ready():
                    return event
                case EngineFailed(_, message):
                    raise SystemExit(message)
        raise AssertionError

    def serve(self, submits: list[Submit]) -> None:
        """Hand all in at once and wait for the last answer."""
        self.link.sendall(b"".join(encode(submit) for submit in submits))
        left = {submit.request for submit in submits}
        for event in self.events():
            if isinstance(event, StepOutputs):
                self.load = event.load
                left -= {output.request for output in event.outputs if output.finish}
            if not left:
                return

    def settle(self) -> None:
        """Wait until every planned program is there and the process has been idle since."""
        while not self.load.programs or self.load.programs < self.load.programs_planned:
            time.sleep(0.5)
            self.serve([Submit(0, [1, 2, 3], Sampling(temperature=0.0), 4)])
        self.rest()
        time.sleep(1)

    def rest(self) -> None:
        """Wait until it is idle."""
        next(event for event in self.events() if isinstance(event, LoadReport))


def traffic() -> Iterator[list[Submit]]:
    """Waves of requests of every kind: 1 to 32 at once, short and long prompts, texts that repeat themselves."""
    number = 1
    for count, prompt, tokens in ((1, 20, 64), (4, 100, 48), (16, 60, 48), (32, 33, 24), (6, 700, 32), (1, 3000, 16)):
        wave = []
        for i in range(count):
            ids = [100 + (number * 7 + j * (1 + i % 3)) % (50 if i % 2 else 9000) for j in range(prompt)]
            wave.append(Submit(number, ids, KINDS[number % len(KINDS)], tokens, min_tokens=3, stop_ids=(2,)))
            number += 1
        yield wave


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile-cache", default="", help="folder of compiled programs; none: compile everything")
    parser.add_argument("--rounds", type=int, default=2, help="of the traffic")
    arguments = parser.parse_args()
    path = fetch_built_in(DEMO, cache_root(os.environ) / "models", lambda *_: None)
    with tempfile.TemporaryDirectory() as scratch:
        cache = arguments.compile_cache or scratch
        process = Process(EngineSpec("demo", str(path), compile_cache=cache))
        time.sleep(0.5)
        seen = {"before a model": process.resident()}
        began = time.monotonic()
        ready = process.ready()
        seconds = {"ready": time.monotonic() - began}
        seen["ready"] = process.resident()
        process.settle()
        seconds["all programs"] = time.monotonic() - began
        seen["all programs"] = process.resident()
        for _ in range(arguments.rounds):
            for wave in traffic():
                process.serve(wave)
        seen["while it serves"] = process.resident()
        process.rest()
        seen["after mixed traffic"] = process.resident()
        process.link.sendall(encode(Shutdown()))
        process.child.wait()
    held = sum(row.bytes for row in ready.plan if row.what == "weights" or row.what.startswith("KV"))
    for phase, size in seen.items():
        besides = size - held if phase != "before a model" else size
        sys.stdout.write(f"{phase:22} {size / MIB:8,.0f} MiB, besides weights and KV {besides / MIB:6,.0f}\n")
    told = {"resident": seen, "held": held, "seconds": seconds, "programs": process.load.programs}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
