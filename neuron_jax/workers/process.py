"""One process of a model as asyncio sees it: spawned, heard, watched, ended; must not know requests, HTTP or restarts.

The process gets one end of a socket pair as `--fd N`, a session of its own (a terminal's Ctrl-C stops the daemon, and
the daemon ends its engines), and an environment that shows it only its devices. Everything it prints goes to the log.

    init ──Joined──▶ init_ok ──Sane──▶ sane ──Ready──▶ ready        (a process without a group goes from init to ready)
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from attrs import frozen

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers import frames
from neuron_jax.workers.faults import classify
from neuron_jax.workers.frames import EngineSpec, Event, Joined, Listening, Pulse, Ready, Sane
from neuron_jax.workers.watchdog import Hung, judge

DEFAULT_COMMAND = (sys.executable, "-m", "neuron_jax.workers.engine_process")
WORKER_COMMAND = (sys.executable, "-m", "neuron_jax", "worker")
LAST_WORDS_LINES = 30
LAST_WORDS_CHARS = 2_000
READ_BYTES = 256 * 1024
EXIT_SECONDS = 2.0
"""How long a process may take to end after its socket closed, and after it was told to shut down."""
WATCH_SECONDS = 0.25
"""How often the signs of life are looked at."""

CHECKS = (-signal.SIGABRT, -signal.SIGSEGV)
"""How a process ends when a library gives up: then only its last words say of what."""

CUDA_SHARE = 0.97
"""How much of a GPU's free memory an allocator can make use of."""


def engine_environment(spec: EngineSpec, inherited: Mapping[str, str], fraction: float = CUDA_SHARE) -> dict[str, str]:
    """The engine's environment: `inherited`, and what makes JAX see exactly the devices of `spec`, `fraction` of each."""
    env = {**inherited, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": spec.platform}
    if spec.platform == "cuda":
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in spec.devices)
        # The engine sizes its own pool from a plan; a preallocated arena would hide what is free from it.
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction:.4f}"
        if spec.group is not None:
            # Ranks would wait for each other's part of the tuning of programs that they compile at different times.
            env["XLA_FLAGS"] = f"{inherited.get('XLA_FLAGS', '')} --xla_gpu_shard_autotuning=false".strip()
        return env
    env["CUDA_VISIBLE_DEVICES"] = ""
    here = len(spec.devices) if spec.group is not None else spec.tensor_parallel
    if here > 1:
        flag = f"--xla_force_host_platform_device_count={here}"
        env["XLA_FLAGS"] = f"{inherited.get('XLA_FLAGS', '')} {flag}".strip()
    return env


LEVELS = {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}


class _LastWords:
    """The tail of what a process printed, whole lines; also sends every line to the log, with the level it begins with."""

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(f"neuron.engine.{name}")
        self._lines: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk)[-65536:].split(b"\n")
        for line in lines:
            self._add(line)

    def close(self) -> None:
        self._add(self._rest)
        self._rest = b""

    def _add(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._lines.append(text)
            self._log.log(LEVELS.get(text.partition(" ")[0], logging.INFO), "%s", text)

    def __str__(self) -> str:
        return "\n".join(self._lines)[-LAST_WORDS_CHARS:]


@frozen(eq=False)
class _Pipes:
    """What belongs to one running process."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    words: _LastWords


class EngineProcess:
    """A process from `spawn` to its end, which `died` tells. `hear` gets every event but those kept here."""

    def __init__(self, spec: EngineSpec, pipes: _Pipes, hear: Callable[[Event], None]) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.died: asyncio.Future[EngineDied] = loop.create_future()
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self.listening: asyncio.Future[Listening] = loop.create_future()
        self.sane: asyncio.Future[Sane] = loop.create_future()
        self.joined = False
        self._pipes = pipes
        self._hear = hear
        self._closing = False
        self._pulse = Pulse()
        self._silent = 0.0
        self._fault = ("exited", "")
        self._watch = asyncio.create_task(self._run(), name=str(self))

    @classmethod
    async def spawn(
        cls, spec: EngineSpec, command: Sequence[str], env: Mapping[str, str], hear: Callable[[Event], None]
    ) -> Self:
        """A process that has been told its spec."""
        process = cls(spec, await _spawn(spec, command, env), hear)
        process.send(frames.LoadEngine(spec))
        return process

    def __str__(self) -> str:
        group = self.spec.group
        rank = f"rank {group.rank} of {group.world}" if group is not None else "the engine process"
        return f"{rank} of {self.spec.model_id}"

    @property
    def pid(self) -> int:
        return self._pipes.process.pid

    @property
    def rank(self) -> int:
        return self.spec.group.rank if self.spec.group is not None else 0

    @property
    def host(self) -> str:
        """Where it runs, as the other ranks know it; "" without a group."""
        return self.spec.group.host if self.spec.group is not None else ""

    @property
    def devices(self) -> tuple[int, ...]:
        return self.spec.devices

    @property
    def phase(self) -> str:
        """How far the handshake and the load are: init, init_ok, sane, ready, or ended."""
        if self.died.done():
            return "ended"
        if self.ready.done():
            return "ready"
        return "sane" if self.sane.done() else "init_ok" if self.joined else "init"

    def send(self, command: frames.Command) -> None:
        if not self._pipes.writer.is_closing():
            self._pipes.writer.write(frames.encode(command))

    async def close(self) -> None:
        """Ends the process: Shutdown, then SIGKILL to its group after a moment. Returns when it is reaped."""
        self._closing = True
        self.send(frames.Shutdown())
        try:
            await asyncio.wait([self._watch], timeout=EXIT_SECONDS)
        finally:
            self._kill()
        await self._watch

    def end(self, verdict: Hung) -> None:
        """Ends the process at once because of `verdict`, which `died` will tell."""
        self._fault = (verdict.kind, verdict.words)
        self._kill()

    def _kill(self) -> None:
        if self._pipes.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pipes.process.pid, signal.SIGKILL)

    async def _run(self) -> None:
        """The process's whole life: reads until it ends, then tells everybody who still waits."""
        reading = asyncio.create_task(self._read())
        printing = asyncio.create_task(self._print())
        exiting = asyncio.create_task(self._pipes.process.wait())
        watching = asyncio.create_task(self._look())
        await asyncio.wait({reading, exiting}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({reading, exiting}, timeout=EXIT_SECONDS)
        self._kill()
        code = await exiting
        await asyncio.wait({reading, printing}, timeout=EXIT_SECONDS)
        for task in (reading, printing, watching):
            task.cancel()
        broken = (await asyncio.gather(reading, printing, watching, return_exceptions=True))[0]
        self._pipes.writer.close()
        self._end(code, broken if isinstance(broken, frames.FrameError) else None)

    async def _read(self) -> None:
        events = frames.EventReader()
        with contextlib.suppress(ConnectionError):
            while chunk := await self._pipes.reader.read(READ_BYTES):
                self._silent = 0.0
                for event in events.feed(chunk):
                    self._absorb(event)

    async def _print(self) -> None:
        assert self._pipes.process.stdout is not None
        while chunk := await self._pipes.process.stdout.read(READ_BYTES):
            self._pipes.words.feed(chunk)
        self._pipes.words.close()

    async def _look(self) -> None:
        """Ends the process when it hangs. Silence is counted in looks: what came while this loop was busy is yet unread."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._silent += WATCH_SECONDS
            verdict = judge(self.spec, self._pulse, self._silent, serving=self.ready.done())
            if verdict is not None:
                self.end(verdict)

    def _absorb(self, event: Event) -> None:
        match event:
            case Pulse():
                self._pulse = event
            case Listening():
                _resolve(self.listening, event)
            case Joined():
                self.joined = True
            case Sane():
                _resolve(self.sane, event)
            case Ready() if self.ready.done():
                raise frames.FrameError("a second ready frame")
            case Ready():
                self.ready.set_result(event)
            case frames.EngineFailed(kind, message, plan) if not self.ready.done():
                rows = [{"what": row.what, "bytes": row.bytes} for row in plan]
                self.ready.set_exception(LoadError(kind, message, {"plan": rows} if rows else {}))
                self.ready.exception()  # a rank's is told by `died` as well
                self._fault = (kind, f"gave up: {kind}: {message}")
            case frames.EngineFailed(kind, message):
                self._fault = (kind, f"gave up: {kind}: {message}")
            case _:
                self._hear(event)

    def _end(self, code: int, broken: frames.FrameError | None) -> None:
        kind, why = self._fault
        words = self._obituary(code, broken, why)
        if kind == "exited" and code in CHECKS:
            known = classify(RuntimeError(str(self._pipes.words)))
            kind = kind if known == "internal" else known
        error = EngineDied(words, kind)
        self.died.set_result(error)
        for future in (self.ready, self.listening, self.sane):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody waits for it when the start was cancelled

    def _obituary(self, code: int, broken: frames.FrameError | None, why: str) -> str:
        if self._closing:
            return f"{self} was shut down"
        if why:
            return f"{self} {why}"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        garbled = f" after an impossible frame ({broken})" if broken else ""
        last = str(self._pipes.words)
        return f"{self} {how}{garbled}" + (f"; its last words: {last}" if last else "")


def _resolve(future: "asyncio.Future[frames.T]", value: "frames.T") -> None:
    if not future.done():
        future.set_result(value)


def _arguments(spec: EngineSpec, command: Sequence[str]) -> list[str]:
    """What to run: `command` itself, or for the other ranks `neuron worker`, whose words show in `ps` what it is."""
    group = spec.group
    if group is None or group.rank == 0 or tuple(command) != DEFAULT_COMMAND:
        return list(command)
    place = ("--rank", str(group.rank), "--world", str(group.world), "--coordinator", group.coordinator)
    return [*WORKER_COMMAND, *place]


async def _spawn(spec: EngineSpec, command: Sequence[str], env: Mapping[str, str]) -> _Pipes:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *_arguments(spec, command),
                "--fd",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    ours.setblocking(False)
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    return _Pipes(process, reader, writer, _LastWords(spec.model_id))
