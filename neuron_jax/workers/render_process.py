"""A process that renders chat templates, reads grammars and can be lost: bounded in memory and time, with nothing of the
daemon's in it.

Started by the daemon with one end of a socket pair as `--fd N`. A template is a program out of a file from somewhere: in the
sandbox of `text.sandbox` it reaches nothing, and what a sandbox cannot bound, the kernel does. Memory that is refused ends
the rendering, time that is used up ends the process. It ends by itself when the daemon closes the socket.
"""

import argparse
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.text.errors import TemplateError, TooManyTokensError
from neuron_jax.text.prompt import Chat, ChatFormat, Renderer
from neuron_jax.text.spelling import Spelling
from neuron_jax.workers.render_frames import (
    HEADER,
    Answer,
    Check,
    Done,
    Refused,
    Render,
    TooLong,
    Unfit,
    decode_task,
    encode,
)

MIB = 1 << 20
_SURROGATES = re.compile("[\ud800-\udfff]")


def main() -> None:
    """Answers renderings until the daemon goes away, or until memory ran out, after which nobody knows what is left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--memory-mb", type=int, required=True)
    parser.add_argument("--cpu-seconds", type=int, required=True)
    parser.add_argument("--check-seconds", type=float, required=True)
    told = parser.parse_args()
    with socket.socket(fileno=told.fd) as daemon:
        bound_memory(told.memory_mb)
        serve(daemon, told)


def bound_memory(memory_mb: int) -> None:
    """Lets the process take so many MiB besides what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_mb * MIB)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)


@contextmanager
def bound_check(seconds: float) -> Iterator[None]:
    """Ends the process, by SIGPROF, when what stands inside computes for longer."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def bound_time(seconds: int) -> None:
    """Ends the process, by SIGXCPU, once it has computed for so many more seconds."""
    limit(resource.RLIMIT_CPU, int(time.process_time()) + 1 + seconds)


def limit(what: int, most: int) -> None:
    """Less than the daemon itself was given stays as it is."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def serve(daemon: socket.socket, told: argparse.Namespace) -> None:
    """One answer to each frame, within the bounds that the process was told."""
    renderers: dict[int, Renderer] = {}
    with daemon.makefile("rb") as frames:
        while header := frames.read(HEADER.size):
            bound_time(told.cpu_seconds)
            try:
                task = decode_task(frames.read(*HEADER.unpack(header)))
                daemon.sendall(
                    encode(checked(task, told.check_seconds) if isinstance(task, Check) else answer(renderers, task))
                )
            except MemoryError:
                why = f"the chat template needs more than {told.memory_mb} MiB of memory"
                daemon.sendall(encode(Refused(why, last=True)))
                return


def checked(asked: Check, seconds: float) -> Answer:
    """Whether a constraint can be followed, seen in so many seconds. The library is only there where somebody asks for it."""
    from neuron_jax.constraints.grammar import check

    try:
        with bound_check(seconds):
            check(asked.constraint)
    except GrammarError as error:
        return Unfit(_SURROGATES.sub("\ufffd", str(error)), error.keywords)
    return Done("", "")


def answer(renderers: dict[int, Renderer], asked: Render) -> Answer:
    """What comes of one rendering."""
    if asked.format is not None:
        spelling = Spelling(**asked.format["spelling"])
        renderers[asked.number] = Renderer(ChatFormat(**{**asked.format, "spelling": spelling}))
    try:
        return _rendered(renderers[asked.number], asked)
    except TooManyTokensError as error:
        return TooLong(error.tokens)
    except TemplateError as error:
        return Refused(_SURROGATES.sub("\ufffd", str(error)))


def _rendered(renderer: Renderer, asked: Render) -> Answer:
    if asked.chat is None:
        renderer.template.compile()
        return Done("", "")
    rendered = renderer.render(Chat(**asked.chat), asked.most)
    return Done(_SURROGATES.sub("\ufffd", rendered.text), rendered.mark)


if __name__ == "__main__":
    main()
