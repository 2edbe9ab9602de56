"""One engine process as asyncio sees it: start, submit, cancel, death; must not know HTTP, text or restarts.

The process gets one end of a socket pair as `--fd N`, a session of its own (a terminal's Ctrl-C stops the daemon, and
the daemon ends its engines), and an environment that shows it only its devices. Everything it prints goes to the log.
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
from types import TracebackType
from typing import Self

from attrs import field, frozen

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers import frames
from neuron_jax.workers.frames import EngineLoad, EngineSpec, Output, Progress, Ready, Sampling

DEFAULT_COMMAND = (sys.executable, "-m", "neuron_jax.workers.engine_process")
LAST_WORDS_LINES = 30
LAST_WORDS_CHARS = 2_000
READ_BYTES = 256 * 1024
EXIT_SECONDS = 2.0
"""How long a process may take to end after its socket closed, and after it was told to shut down."""

CUDA_SHARE = 0.97
"""How much of a GPU's free memory an allocator can make use of."""

Report = Callable[[Progress], None]


@frozen
class Prompt:
    """What one submission asks for; the fields are those of `frames.Submit`."""

    ids: list[int]
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False


def engine_environment(spec: EngineSpec, inherited: Mapping[str, str], fraction: float = CUDA_SHARE) -> dict[str, str]:
    """The engine's environment: `inherited`, and what makes JAX see exactly the devices of `spec`, `fraction` of each."""
    env = {**inherited, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": spec.platform}
    if spec.platform == "cuda":
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = ",".join(str(index) for index in spec.devices)
        # The engine sizes its own pool from a plan; a preallocated arena would hide what is free from it.
        env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction:.4f}"
        return env
    env["CUDA_VISIBLE_DEVICES"] = ""
    if spec.tensor_parallel > 1:
        flag = f"--xla_force_host_platform_device_count={spec.tensor_parallel}"
        env["XLA_FLAGS"] = f"{inherited.get('XLA_FLAGS', '')} {flag}".strip()
    return env


class Outputs:
    """The answers to some submissions, in order of arrival: iterate it inside `with`; leaving cancels what is open."""

    def __init__(self, client: "EngineClient", requests: Sequence[int]) -> None:
        self._client = client
        self._index = {request: index for index, request in enumerate(requests)}
        self._open = set(requests)
        self._queue: asyncio.Queue[Output | EngineDied] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for request in tuple(self._open):
            self.cancel(request)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        """The next output. Raises EngineDied when the process is gone, StopAsyncIteration after the last finish."""
        while self._open:
            item = await self._queue.get()
            if self._wanted(item):
                return self._take(item)
        raise StopAsyncIteration

    async def next(self, timeout: float) -> Output | None:  # noqa: ASYNC109 - returns None, so that heartbeats can be sent
        """As `anext`, or None when nothing came for `timeout` seconds."""
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if self._wanted(item):
                return self._take(item)
        try:
            async with asyncio.timeout(timeout):
                return await anext(self)
        except TimeoutError:
            return None

    def index(self, output: Output) -> int:
        """Which of the submissions, in the order they were given, `output` answers."""
        return self._index[output.request]

    @property
    def open(self) -> int:
        """Submissions that have not finished."""
        return len(self._open)

    def cancel(self, request: int) -> None:
        """Ends one submission within an engine step; none of its outputs is seen afterwards."""
        if request in self._open:
            self._open.discard(request)
            self._client.forget(request)

    def put(self, item: Output | EngineDied) -> None:
        """Called by the client's reader only."""
        self._queue.put_nowait(item)

    def _wanted(self, item: Output | EngineDied) -> bool:
        """False for what a submission that was cancelled had still in the queue."""
        return isinstance(item, EngineDied) or item.request in self._open

    def _take(self, item: Output | EngineDied) -> Output:
        if isinstance(item, EngineDied):
            self._open.clear()
            raise _again(item)
        if item.finish is not None:
            self._open.discard(item.request)
        return item


class _LastWords:
    """The tail of what a process printed, whole lines; also sends every line to the log."""

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
            self._log.info("%s", text)

    def __str__(self) -> str:
        return "\n".join(self._lines)[-LAST_WORDS_CHARS:]


@frozen(eq=False)
class _Pipes:
    """What belongs to one running process."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    words: _LastWords
    tasks: list["asyncio.Task[None]"] = field(factory=list)


class EngineClient:
    """One engine process. `await EngineClient.start(...)`, `submit`, `await close()`; use it from one event loop."""

    def __init__(self, spec: EngineSpec, pipes: _Pipes, report: Report) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.load = EngineLoad()
        self.died: asyncio.Future[EngineDied] = loop.create_future()
        self._ready: asyncio.Future[Ready] = loop.create_future()
        self._pipes = pipes
        self._report = report
        self._streams: dict[int, Outputs] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._next = 1
        self._closing = False
        self._fault = "exited"
        self._watch = asyncio.create_task(self._run(), name=f"engine {spec.model_id}")

    @classmethod
    async def start(
        cls,
        spec: EngineSpec,
        *,
        inherited: Mapping[str, str],
        command: Sequence[str] = DEFAULT_COMMAND,
        report: Report = lambda _: None,
        fraction: float = CUDA_SHARE,
    ) -> Self:
        """A client whose engine is ready. Raises LoadError with the frame's kind, or EngineDied; leaves no process."""
        pipes = await _spawn(spec, command, engine_environment(spec, inherited, fraction))
        client = cls(spec, pipes, report)
        try:
            client._send(frames.Load(spec))
            await asyncio.shield(client._ready)
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def ready(self) -> Ready:
        """What the engine said when it was ready."""
        return self._ready.result()

    @property
    def pid(self) -> int:
        """The process id of the engine."""
        return self._pipes.process.pid

    @property
    def open(self) -> int:
        """Submissions in flight."""
        return len(self._streams)

    def submit(self, *prompts: Prompt) -> Outputs:
        """Starts `prompts` side by side. Raises EngineDied when the process is gone already."""
        if self.died.done():
            raise _again(self.died.result())
        requests = range(self._next, self._next + len(prompts))
        self._next += len(prompts)
        outputs = Outputs(self, requests)
        for request, prompt in zip(requests, prompts, strict=True):
            self._streams[request] = outputs
            self._idle.clear()
            self._send(_submission(request, prompt))
        return outputs

    def forget(self, request: int) -> None:
        """Cancels a submission; called by `Outputs`."""
        if self._remove(request):
            self._send(frames.Cancel(request))

    async def idle(self) -> None:
        """Returns when no submission is in flight."""
        await self._idle.wait()

    async def close(self) -> None:
        """Ends the process: Shutdown, then SIGKILL to its group after a moment. Returns when it is reaped."""
        self._closing = True
        self._send(frames.Shutdown())
        try:
            await asyncio.wait([self._watch], timeout=EXIT_SECONDS)
        finally:
            self._kill()
        await self._watch

    def _send(self, command: frames.Command) -> None:
        if not self._pipes.writer.is_closing():
            self._pipes.writer.write(frames.encode(command))

    def _kill(self) -> None:
        if self._pipes.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pipes.process.pid, signal.SIGKILL)

    async def _run(self) -> None:
        """The process's whole life: reads until it ends, then tells everybody who still waits."""
        reading = asyncio.create_task(self._read())
        printing = asyncio.create_task(self._print())
        exiting = asyncio.create_task(self._pipes.process.wait())
        await asyncio.wait({reading, exiting}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({reading, exiting}, timeout=EXIT_SECONDS)
        self._kill()
        code = await exiting
        await asyncio.wait({reading, printing}, timeout=EXIT_SECONDS)
        for task in (reading, printing):
            task.cancel()
        broken = (await asyncio.gather(reading, printing, return_exceptions=True))[0]
        self._pipes.writer.close()
        self._end(code, broken if isinstance(broken, frames.FrameError) else None)

    async def _read(self) -> None:
        events = frames.EventReader()
        with contextlib.suppress(ConnectionError):
            while chunk := await self._pipes.reader.read(READ_BYTES):
                for event in events.feed(chunk):
                    self._absorb(event)

    async def _print(self) -> None:
        assert self._pipes.process.stdout is not None
        while chunk := await self._pipes.process.stdout.read(READ_BYTES):
            self._pipes.words.feed(chunk)
        self._pipes.words.close()

    def _absorb(self, event: frames.Event) -> None:
        match event:
            case frames.Step(outputs, load):
                self.load = load
                for output in outputs:
                    self._deliver(output)
            case frames.Report(load):
                self.load = load
            case frames.Progress():
                self._report(event)
            case frames.Ready() if not self._ready.done():
                self._ready.set_result(event)
            case frames.Failed(kind, message, plan) if not self._ready.done():
                rows = [{"what": row.what, "bytes": row.bytes} for row in plan]
                self._ready.set_exception(LoadError(kind, message, {"plan": rows} if rows else {}))
            case frames.Failed(kind, message):
                self._fault = kind
                self._pipes.words.feed(f"{kind}: {message}\n".encode())
            case frames.Ready():
                raise frames.FrameError("a second ready frame")

    def _deliver(self, output: Output) -> None:
        stream = self._streams.get(output.request)
        if stream is None:
            return
        if output.finish is not None:
            self._remove(output.request)
        stream.put(output)

    def _remove(self, request: int) -> bool:
        known = self._streams.pop(request, None) is not None
        if not self._streams:
            self._idle.set()
        return known

    def _end(self, code: int, broken: frames.FrameError | None) -> None:
        words = _obituary(self.spec.model_id, code, self._pipes.words, broken, asked=self._closing)
        error = EngineDied(words, self._fault)
        self.died.set_result(error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # nobody waits for it when the start was cancelled
        for stream in set(self._streams.values()):
            stream.put(error)
        self._streams.clear()
        self._idle.set()


def _again(error: EngineDied) -> EngineDied:
    """The same error for one more of those who waited: raising one object in many tasks would pile up tracebacks."""
    return EngineDied(str(error), error.kind)


def _submission(request: int, prompt: Prompt) -> frames.Submit:
    return frames.Submit(
        request=request,
        prompt=prompt.ids,
        sampling=prompt.sampling,
        max_tokens=prompt.max_tokens,
        min_tokens=prompt.min_tokens,
        stop_ids=prompt.stop_ids,
        ignore_eos=prompt.ignore_eos,
    )


def _obituary(model: str, code: int, words: _LastWords, broken: frames.FrameError | None, *, asked: bool) -> str:
    if asked:
        return f"the engine of {model} was shut down"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    garbled = f" after an impossible frame ({broken})" if broken else ""
    last = str(words)
    return f"the engine process of {model} {how}{garbled}" + (f"; its last words: {last}" if last else "")


async def _spawn(spec: EngineSpec, command: Sequence[str], env: Mapping[str, str]) -> _Pipes:
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *command,
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
