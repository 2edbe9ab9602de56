"""The real engine process over a real socket: loads, serves, reports, refuses, and ends when it is left alone."""

import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from attrs import define, field

from neuron_jax.workers.frames import (
    Cancel,
    Command,
    EngineFailed,
    EngineSpec,
    Event,
    EventReader,
    LoadEngine,
    LoadReport,
    Output,
    Progress,
    Ready,
    Sampling,
    Shutdown,
    StepOutputs,
    Submit,
    encode,
)
from tests.fakes import quick
from tests.fakes.tiny_llama import write_checkpoint


@define
class Peer:
    """The daemon's end of the socket, blocking."""

    link: socket.socket
    process: subprocess.Popen[bytes]
    _reader: EventReader = field(factory=EventReader)
    _events: list[Event] = field(factory=list)

    def send(self, command: Command) -> None:
        self.link.sendall(encode(command))

    def next(self) -> Event:
        while not self._events:
            chunk = self.link.recv(1 << 16)
            assert chunk, f"the engine went away with {self.process.wait(20)}"
            self._events += self._reader.feed(chunk)
        return self._events.pop(0)

    def until(self, kind: type) -> tuple[Event, list[Event]]:
        before = []
        while not isinstance(event := self.next(), kind):
            before.append(event)
        return event, before

    def generate(self, submit: Submit) -> list[int]:
        return [token for output in self.outputs(submit) for token in output.tokens]

    def outputs(self, submit: Submit) -> list[Output]:
        self.send(submit)
        found: list[Output] = []
        while not (found and found[-1].finish):
            step, _ = self.until(StepOutputs)
            assert isinstance(step, StepOutputs)
            found += [output for output in step.outputs if output.request == submit.request]
        return found


@contextmanager
def engine(spec: EngineSpec) -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "neuron_jax.workers.engine_process", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | quick.ENVIRON | {"JAX_PLATFORMS": "cpu"},
        )
        theirs.close()
        ours.settimeout(120)
        try:
            peer = Peer(ours, process)
            peer.send(LoadEngine(spec))
            yield peer
        finally:
            ours.close()
            assert process.wait(20) is not None


def spec(path: pathlib.Path, **changes: object) -> EngineSpec:
    return EngineSpec("tiny", str(path), quant="none", max_slots=2, chunk_tokens=32, **changes)


def greedy(request: int, prompt: list[int], max_tokens: int = 8) -> Submit:
    return Submit(request, prompt, Sampling(temperature=0.0), max_tokens)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def peer(checkpoint: pathlib.Path) -> Iterator[Peer]:
    with engine(spec(checkpoint, threads=1)) as peer:
        yield peer


def test_it_reports_its_load_and_then_its_plan(peer: Peer) -> None:
    """Progress in bytes and programs, then Ready with the memory table. The first test: the others find it serving."""
    ready, before = peer.until(Ready)

    assert isinstance(ready, Ready)
    assert {event.phase for event in before if isinstance(event, Progress)} == {"weights", "compile"}
    assert ready.max_context == 512
    assert ready.threads == 1
    assert [row.what for row in ready.plan][-2:] == ["total", "may use"]
    assert any(row.what.startswith("step peak (measured; ") for row in ready.plan)


def test_it_tells_of_what_is_compiled_behind_while_it_is_idle(peer: Peer) -> None:
    """Nobody has to ask for anything until all programs are there; what tracing left is dropped then, and not missed."""
    while True:
        report, _ = peer.until(LoadReport)
        assert isinstance(report, LoadReport)
        if report.load.programs == report.load.programs_planned:
            break

    assert report.load.programs > report.load.compiles > 0
    assert len(peer.generate(greedy(1, [1, 2, 3]))) == 8
    report, _ = peer.until(LoadReport)
    assert isinstance(report, LoadReport)
    assert report.load.steady_compiles == 0


def test_a_cancelled_request_does_not_disturb_the_next(peer: Peer) -> None:
    first = peer.generate(greedy(2, [1, 2, 3]))
    peer.send(greedy(3, [5] * 40, max_tokens=200))
    peer.send(Cancel(3))

    assert peer.generate(greedy(4, [1, 2, 3])) == first


def test_an_interrupt_of_the_terminal_is_not_its_business(peer: Peer) -> None:
    peer.process.send_signal(signal.SIGINT)

    assert len(peer.generate(greedy(5, [1, 2, 3]))) == 8


def test_outputs_are_booked_to_their_own_requests(peer: Peer) -> None:
    """Interleaved requests come back as they would have alone."""
    alone = {i: peer.generate(greedy(10 + i, [i, i + 1])) for i in (1, 2, 3)}
    for i in (1, 2, 3):
        peer.send(greedy(20 + i, [i, i + 1]))
    outputs: list[Output] = []
    while sum(output.finish is not None for output in outputs) < 3:
        step, _ = peer.until(StepOutputs)
        assert isinstance(step, StepOutputs)
        outputs += step.outputs

    assert {i: [t for o in outputs if o.request == 20 + i for t in o.tokens] for i in (1, 2, 3)} == alone


def test_a_prompt_is_found_again(peer: Peer) -> None:
    """Full pages of it; the first output says so."""
    first, second = (peer.outputs(greedy(request, [*range(100, 140)])) for request in (50, 51))

    assert [output.cached_tokens for output in (*first, *second) if output.cached_tokens] == [32]
    assert second[0].cached_tokens == 32


@pytest.mark.slow
def test_two_devices_give_the_tokens_of_one(peer: Peer, checkpoint: pathlib.Path) -> None:
    """tensor_parallel 2 on two fake CPU devices, the KV pool sharded by heads, without prefix cache; ended by command."""
    wanted = peer.generate(greedy(30, list(range(50)), max_tokens=20))
    with engine(spec(checkpoint, devices=(0, 1), tensor_parallel=2, prefix_cache=False)) as two:
        two.until(Ready)
        got = [two.outputs(greedy(request, list(range(50)), max_tokens=20)) for request in (1, 2)]
        two.send(Shutdown())

        assert two.process.wait(20) == 0

    assert [[token for output in outputs for token in output.tokens] for outputs in got] == [wanted] * 2
    assert not any(output.cached_tokens for outputs in got for output in outputs)


def test_it_ends_when_the_daemon_goes_away_even_while_busy(peer: Peer) -> None:
    """The last test of the shared process."""
    peer.send(greedy(40, [1, 2, 3], max_tokens=500))
    peer.until(StepOutputs)
    peer.link.close()

    assert peer.process.wait(20) == 0


def test_it_ends_when_the_daemon_goes_away_without_having_read_everything(checkpoint: pathlib.Path) -> None:
    """Then its read fails with ECONNRESET instead of giving nothing."""
    with engine(spec(checkpoint)) as peer:
        select.select([peer.link], [], [], 60)
        peer.link.close()

        assert peer.process.wait(20) is not None


def test_a_model_that_cannot_fit_is_refused_with_the_table(checkpoint: pathlib.Path) -> None:
    with engine(spec(checkpoint, memory_mb=300)) as peer:
        failed, _ = peer.until(EngineFailed)
        code = peer.process.wait(20)

    assert isinstance(failed, EngineFailed)
    assert failed.kind == "does_not_fit"
    assert "MiB more on each device" in failed.message
    assert failed.plan
    assert code == 1


def test_a_broken_checkpoint_is_refused_with_all_misfits(tmp_path: pathlib.Path) -> None:
    write_checkpoint(tmp_path, num_hidden_layers=1)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_hidden_layers": 1', '"num_hidden_layers": 3'))
    with engine(spec(tmp_path)) as peer:
        failed, _ = peer.until(EngineFailed)

    assert isinstance(failed, EngineFailed)
    assert failed.kind == "bad_checkpoint"
    assert all(f"model.layers.{i}.mlp.down_proj.weight" in failed.message for i in (1, 2))
