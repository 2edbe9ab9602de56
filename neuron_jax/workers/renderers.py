"""The processes that render chat templates and read grammars, as asyncio sees them: started when needed, kept, replaced;
knows no HTTP.

who asks ──waits for one that is idle──▶ Render or Check ──▶ answer ──▶ idle again
                                           └──died, or took too long──▶ TemplateError; the next one is new
"""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Self

import attrs
import msgspec
from attrs import define, field, frozen

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.text.errors import TemplateError, TooManyTokensError
from neuron_jax.text.prompt import Chat, ChatFormat, Rendered
from neuron_jax.workers.frames import Constraint
from neuron_jax.workers.render_frames import (
    HEADER,
    Answer,
    Check,
    Done,
    Refused,
    Render,
    Task,
    TooLong,
    Unfit,
    decode_answer,
    encode,
)

COMMAND = (sys.executable, "-m", "neuron_jax.workers.render_process")
PROCESSES = 2
KEPT_FORMATS = 16
"""Templates that one process keeps compiled; with more it is replaced."""

CPU_SECONDS = 3
"""Computing time of one rendering, rounded up by at most one. The longest conversations take some tenths."""
CHECK_SECONDS = 0.8
"""Computing time for one constraint. Those of real clients take milliseconds."""
WALL_SECONDS = 30.0
"""For one rendering, on a machine however busy."""

TOO_INTRICATE = "it takes too much time or memory to read"

EXIT_SECONDS = 1.0
BUFFER = 1 << 20
"""Bytes of a long chat that are on the way at once."""

INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL", "LC_TIME")
"""Of the environment: what Python needs to start, and what dates in prompts depend on. No secrets."""


@frozen(eq=False)
class _Process:
    """One running renderer, and the formats that it knows by number."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    known: set[int] = field(factory=set)

    @classmethod
    async def start(cls, command: Sequence[str], env: Mapping[str, str]) -> Self:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *("--fd", str(theirs.fileno())),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=env,
                    start_new_session=True,  # a terminal's Ctrl-C is for the daemon
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return cls(process, *await asyncio.open_unix_connection(sock=ours, limit=BUFFER))

    @property
    def usable(self) -> bool:
        return self.process.returncode is None and not self.reader.at_eof() and len(self.known) < KEPT_FORMATS

    async def ask(self, task: Task) -> Answer:
        """Raises EOFError or ConnectionError when the process ends, MsgspecError when it answers nonsense."""
        self.writer.write(encode(task))
        with contextlib.suppress(ConnectionError):  # it may have said why
            await self.writer.drain()
        (length,) = HEADER.unpack(await self.reader.readexactly(HEADER.size))
        return decode_answer(await self.reader.readexactly(length))

    async def end(self) -> int:
        """Its exit code; it is gone."""
        self.writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_SECONDS):
                return await self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        return await self.process.wait()


@define(eq=False)
class Renderers:
    """Make it inside the loop, `close` it. `memory_mb`: MiB that one rendering may take, copies of the request included."""

    memory_mb: int
    environ: Mapping[str, str]
    command: Sequence[str] = COMMAND
    cpu_seconds: int = CPU_SECONDS
    check_seconds: float = CHECK_SECONDS
    wall_seconds: float = WALL_SECONDS
    _processes: asyncio.Semaphore = field(factory=lambda: asyncio.Semaphore(PROCESSES), init=False)
    _checking: asyncio.Semaphore = field(factory=lambda: asyncio.Semaphore(1), init=False)  # beside those that render
    _idle: list[_Process] = field(factory=list, init=False)
    _numbers: dict[ChatFormat, int] = field(factory=dict, init=False)
    _tasks: set[asyncio.Task[Answer]] = field(factory=set, init=False)

    async def compile(self, kind: ChatFormat) -> None:
        """Raises TemplateError when the format's template cannot be run."""
        _rendered(await self._answer(kind, None, None))

    async def render(self, kind: ChatFormat, chat: Chat, most: int | None = None) -> Rendered:
        """The prompt of `chat`. Raises TemplateError, and TooManyTokensError when it surely has more than `most` tokens."""
        return _rendered(await self._answer(kind, chat, most))

    async def check(self, constraint: Constraint) -> None:
        """Raises GrammarError when `constraint` cannot be followed, or when it takes too much to see."""
        try:
            answer = await self._shielded(self._check(Check(constraint)))
        except TemplateError as error:  # the process was lost on it
            raise GrammarError(TOO_INTRICATE) from error
        if isinstance(answer, Unfit):
            raise GrammarError(answer.message, answer.keywords)
        if isinstance(answer, Refused):
            raise GrammarError(TOO_INTRICATE)

    async def close(self) -> None:
        """Ends all processes."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        idle, self._idle = self._idle, []
        await asyncio.gather(*(process.end() for process in idle))

    async def _answer(self, kind: ChatFormat, chat: Chat | None, most: int | None) -> Answer:
        return await self._shielded(self._in_process(kind, chat, most))

    async def _shielded(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Who stops waiting leaves it to end by itself: its process is still good then."""
        task = asyncio.create_task(work, name="render")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: "asyncio.Task[Answer]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be waiting any more

    async def _check(self, check: Check) -> Answer:
        async with self._checking:
            return await self._asked(await self._take(), check)

    async def _in_process(self, kind: ChatFormat, chat: Chat | None, most: int | None) -> Answer:
        async with self._processes:
            process = await self._take()
            number = self._numbers.setdefault(kind, len(self._numbers))
            render = Render(
                number=number,
                format=None if number in process.known else attrs.asdict(kind),
                chat=None if chat is None else attrs.asdict(chat, recurse=False),
                most=most,
            )
            process.known.add(number)
            return await self._asked(process, render)

    async def _asked(self, process: _Process, task: Task) -> Answer:
        why = ""
        try:
            async with asyncio.timeout(self.wall_seconds):
                answer = await process.ask(task)
        except TimeoutError:
            why = f"ran for more than {self.wall_seconds:g} seconds"
            process.process.kill()
        except (EOFError, ConnectionError, msgspec.MsgspecError):
            pass
        except BaseException:
            process.process.kill()
            await process.end()
            raise
        else:
            await self._put_back(process, last=isinstance(answer, Refused) and answer.last)
            return answer
        code = await process.end()
        raise TemplateError(f"the chat template {why or _how(code)}")

    async def _put_back(self, process: _Process, *, last: bool) -> None:
        if last:
            await process.end()
        else:
            self._idle.append(process)

    async def _take(self) -> _Process:
        """One that is idle, else a new one."""
        while self._idle:
            process = self._idle.pop()
            if process.usable:
                return process
            await process.end()
        kept = {key: value for key, value in self.environ.items() if key in INHERITED}
        bounds = {
            "--memory-mb": self.memory_mb,
            "--cpu-seconds": self.cpu_seconds,
            "--check-seconds": self.check_seconds,
        }
        told = [str(word) for bound in bounds.items() for word in bound]
        return await _Process.start((*self.command, *told), kept)


def _rendered(answer: Answer) -> Rendered:
    match answer:
        case Done(text, mark):
            return Rendered(text, mark)
        case Refused(message):
            raise TemplateError(message)
        case TooLong(tokens):
            raise TooManyTokensError(tokens, exact=False)
        case Unfit(message):
            raise TemplateError(message)


def _how(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "computed for too long"
    return f"ended the process that ran it, with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
